"""The methods compared: ours, its peers from PEFT, and full fine-tuning, behind one interface.

A method turns a fresh pipeline into one with trainable parameters, and tells afterwards how large
its file is. All adapt the attention projections of the UNet and of the text encoder, except where
a method's own paper says otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from torch import nn

from svfit_diffusion.adapters.components import collect_adapter, without_idle_layers
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import inject
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.rank import Rank
from svfit_diffusion.training.budget import Pruner

_NAME = "subject"
_ATTENTION = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "transformer": [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ],
}
_FEED_FORWARD = {"unet": ["ff.net.2"], "text_encoder": ["fc2"]}
_KEYS_AND_VALUES = {"unet": ["to_k", "to_v"], "text_encoder": ["k_proj", "v_proj"]}

Models = dict[str, nn.Module]
"""The models that learn, by component of the pipeline."""


@dataclass(frozen=True)
class Adapted:
    """A pipeline's models made trainable.

    Attributes:
        parameters: what is trained.
        save: writes what was learned into a folder, as its users would.
        pruner: prunes the parameters while they are trained, if the method does.
    """

    parameters: list[nn.Parameter]
    save: Callable[[Path], None]
    pruner: Pruner | None = None

    def file_bytes(self) -> int:
        """Size of what `save` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            return sum(path.stat().st_size for path in Path(folder).iterdir())

    def value_count(self) -> int:
        """Number of values that were trained and kept."""
        if self.pruner is not None:
            return int(self.pruner.live.sum())
        return sum(parameter.numel() for parameter in self.parameters)


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: in results.
        adapt: makes frozen models trainable; the second argument is the number of steps to come.
        learning_rates: to choose from, as many for every method.
        family: of methods drawn alike.
    """

    name: str
    adapt: Callable[[Models, int], Adapted]
    learning_rates: tuple[float, ...]
    family: str


def _svfit(rank: Rank = 1.0, target: str = "attention", budget: int | None = None) -> Any:
    """Train δ, the shift of the singular values."""

    def adapt(models: Models, steps: int) -> Adapted:
        config = SVFitConfig(rank=rank, target=target)
        injections = {
            name: inject(model, config, _NAME, show_progress=False)
            for name, model in models.items()
        }
        for injection in injections.values():
            injection.set_trainable(_NAME, True)
        parameters = [p for i in injections.values() for _, p in i.sigma_parameters(_NAME)]
        metadata = AdapterMetadata(
            fingerprints={name: i.fingerprint(_NAME) for name, i in injections.items()},
            rank=dict.fromkeys(models, str(rank)),
            target=dict.fromkeys(models, target),
        )

        pruner = Pruner(parameters, budget, steps) if budget else None

        def save(folder: Path) -> None:
            adapter = collect_adapter(models, _NAME, metadata)
            if pruner is not None:
                adapter = without_idle_layers(models, _NAME, adapter)
            write_adapter(folder / "pytorch_svfit_weights.safetensors", adapter)

        return Adapted(parameters, save, pruner)

    return adapt


def _peft(configure: Callable[[str], PeftConfig]) -> Any:
    """Train what PEFT adds for a configuration, one per component."""

    def adapt(models: Models, steps: int) -> Adapted:
        for component, model in models.items():
            inject_adapter_in_model(configure(component), model)

        def save(folder: Path) -> None:
            tensors = {
                f"{component}.{key}": value.contiguous()
                for component, model in models.items()
                for key, value in get_peft_model_state_dict(model).items()
            }
            safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")

        return Adapted(_trainable(models), save)

    return adapt


def _full(models: Models, steps: int) -> Adapted:
    """Train every weight."""
    for model in models.values():
        model.requires_grad_(True)

    def save(folder: Path) -> None:
        for component, model in models.items():
            path = folder / f"{component}.safetensors"
            safetensors.torch.save_model(model, str(path))

    return Adapted(_trainable(models), save)


def _nothing(models: Models, steps: int) -> Adapted:
    """Train nothing: the base."""
    return Adapted([], lambda folder: None)


def lora(rank: int, init: bool | str = "gaussian") -> Any:
    """PEFT's LoRA on the attention projections, in one of its initialisations."""
    return _peft(
        lambda component: LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights=init, target_modules=_ATTENTION[component]
        )
    )


_SIGMA_RATES = (0.02, 0.05, 0.1, 0.2)
_ALL_SIGMA_RATES = (0.01, 0.02, 0.05, 0.1)
_LORA_RATES = (3e-4, 1e-3, 3e-3, 1e-2)

METHODS: Sequence[Method] = (
    Method("none", _nothing, (0.0,), "base"),
    Method("SVFit", _svfit(), _SIGMA_RATES, "SVFit"),
    Method("SVFit, energy 0.99", _svfit(0.99), _SIGMA_RATES, "SVFit"),
    Method("SVFit, energy 0.9", _svfit(0.9), _SIGMA_RATES, "SVFit"),
    Method("SVFit, rank 8", _svfit(8), _SIGMA_RATES, "SVFit"),
    Method("SVFit, rank 32", _svfit(32), _SIGMA_RATES, "SVFit"),
    Method("SVFit, all layers", _svfit(target="all"), _ALL_SIGMA_RATES, "SVFit, all layers"),
    Method(
        "SVFit, all layers, budget 11520",
        _svfit(target="all", budget=11520),  # as many as attention has at full rank
        _ALL_SIGMA_RATES,
        "SVFit, all layers",
    ),
    Method("SVFit, budget 3000", _svfit(budget=3000), _SIGMA_RATES, "SVFit, budget"),
    Method("SVFit, budget 1000", _svfit(budget=1000), _SIGMA_RATES, "SVFit, budget"),
    Method("LoRA, r=8", lora(8), _LORA_RATES, "LoRA"),
    Method("LoRA, r=1", lora(1), _LORA_RATES, "LoRA"),
    Method("PiSSA, r=8", lora(8, "pissa"), _LORA_RATES, "PiSSA"),
    Method(
        "OFT, r=8",
        _peft(lambda c: OFTConfig(r=8, oft_block_size=0, target_modules=_ATTENTION[c])),
        (1e-3, 3e-3, 1e-2, 3e-2),
        "OFT",
    ),
    Method(
        "(IA)³",
        _peft(
            lambda c: IA3Config(
                target_modules=[*_KEYS_AND_VALUES[c], *_FEED_FORWARD[c]],
                feedforward_modules=_FEED_FORWARD[c],
            )
        ),
        (3e-3, 1e-2, 3e-2, 1e-1),
        "(IA)³",
    ),
    Method("full", _full, (3e-5, 1e-4, 3e-4, 1e-3), "full"),
)


def find_method(name: str) -> Method:
    """The method of that name."""
    return next(method for method in METHODS if method.name == name)


def _trainable(models: Models) -> list[nn.Parameter]:
    return [p for model in models.values() for p in model.parameters() if p.requires_grad]
