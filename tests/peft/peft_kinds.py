"""Models of every kind of layer that PEFT can put SVFit on, and what they compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from svfit_diffusion.peft import SVFitConfig, SVFitLayer

ROWS = 4
WIDE = 300
"""Side of a weight that is large enough to be trained by one side of its basis alone."""


@dataclass(frozen=True)
class Kind:
    """A model, the settings of an adapter of it, and a batch.

    Attributes:
        build: the same model at every call.
        settings: of `SVFitConfig`.
        batch: `(ROWS, …)`.
    """

    build: Callable[[], nn.Module]
    settings: dict[str, Any]
    batch: Tensor

    def config(self, **changes: Any) -> SVFitConfig:
        """A new config; with `init_weights=False` unless changed, so that adapters do something."""
        return SVFitConfig(**{"init_weights": False, **self.settings, **changes})

    def adapted(self, *names: str, **changes: Any) -> PeftModel:
        """A model with adapters of different random shifts, the first active, in eval mode."""
        names = names or ("default",)
        torch.manual_seed(11)
        model = get_peft_model(self.build(), self.config(**changes), adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, self.config(**changes))
        return model.eval()

    def run(self, model: Any, batch: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The output of the batch, or of another, without gradients."""
        with torch.no_grad():
            return output(model(self.batch if batch is None else batch, **kwargs))

    def loaded(self, folder: Any, **kwargs: Any) -> PeftModel:
        """A saved adapter on a new model, in eval mode; PEFT has nothing to warn of."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return PeftModel.from_pretrained(self.build(), folder, **kwargs).eval()


def output(found: Any) -> Tensor:
    """The tensor that a model gives."""
    return found if isinstance(found, Tensor) else found.logits


def layers(model: nn.Module) -> list[SVFitLayer]:
    """The shifted layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, SVFitLayer)]


def train(model: Any, batch: Tensor, steps: int = 3) -> None:
    """Some steps of training that move every trained value."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        output(model(batch)).square().sum().backward()
        optimizer.step()
    model.eval()


class Mean(nn.Module):
    """Positions or pixels averaged away."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class Words(nn.Module):
    """Words to vectors, `(rows, width, words)` as convolutions take them."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(40, 12, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.emb(x).mT


def seeded(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(part() for part in parts)).eval()

    return build


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=47)
    return GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=32)).eval()


def values(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(5))


def words(length: int, vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, vocabulary, (ROWS, length), generator=generator)


HEAD = [Mean, lambda: nn.Linear(6, 3)]
KINDS = {
    "Linear": Kind(
        seeded(lambda: nn.Linear(10, 14), nn.ReLU, lambda: nn.Linear(14, 6, bias=False)),
        {"target_modules": ["0", "2"]},
        values(7, 10),
    ),
    "wide Linear": Kind(
        seeded(lambda: nn.Linear(WIDE, WIDE + 20), nn.ReLU, lambda: nn.Linear(WIDE + 20, 6)),
        {"target_modules": ["0"], "r": 40},
        values(3, WIDE),
    ),
    "modules_to_save": Kind(
        seeded(lambda: nn.Linear(10, 14), nn.ReLU, lambda: nn.Linear(14, 6)),
        {"target_modules": ["0"], "modules_to_save": ["2"], "r": 0.9},
        values(10),
    ),
    "Conv1d": Kind(
        seeded(lambda: nn.Conv1d(5, 6, 3, padding=1), *HEAD),
        {"target_modules": ["0"]},
        values(5, 9),
    ),
    "Conv2d": Kind(
        seeded(lambda: nn.Conv2d(5, 6, 3, stride=2, padding=1, padding_mode="reflect"), *HEAD),
        {"target_modules": ["0", "2"], "rank_pattern": {"2": 2}},
        values(5, 8, 8),
    ),
    "Conv2d in groups": Kind(
        seeded(lambda: nn.Conv2d(4, 6, 3, groups=2), *HEAD),
        {"target_modules": ["0"]},
        values(4, 6, 6),
    ),
    "Conv3d": Kind(
        seeded(lambda: nn.Conv3d(3, 6, 2), *HEAD), {"target_modules": ["0"]}, values(3, 4, 4, 4)
    ),
    "Embedding": Kind(
        seeded(Words, lambda: nn.Conv1d(12, 6, 1), *HEAD), {"target_modules": ["emb"]}, words(5, 40)
    ),
    "Conv1D of GPT-2": Kind(
        seeded(lambda: Conv1D(14, 10), nn.ReLU, lambda: Conv1D(6, 14)),
        {"target_modules": ["0", "2"]},
        values(7, 10),
    ),
    "GPT-2": Kind(gpt2, {"r": 8, "task_type": "CAUSAL_LM"}, words(6, 48)),
    "Llama": Kind(
        llama, {"target_modules": "all-linear", "r": 0.8, "task_type": "CAUSAL_LM"}, words(6, 48)
    ),
}
