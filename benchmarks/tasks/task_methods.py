"""The methods compared on tasks: what of an encoder each trains beside the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    TinyLoraConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn

from svfit_diffusion.peft import SVFitConfig
from svfit_diffusion.spectrum.rank import Rank

ATTENTION = [
    *("query", "key", "value", "attention.output.dense"),
    *("q_proj", "k_proj", "v_proj", "o_proj"),
]
"""The attention projections of BERT's layers, and of DINOv2's since transformers 5."""

_FEED_FORWARD = r".*\.\d+\.(output\.dense|mlp\.fc2)"
_KEYS_AND_VALUES = r".*\.(key|value|k_proj|v_proj)"

Adapt = Callable[[nn.Module], nn.Module]
"""Makes a frozen encoder trainable, by PEFT around it or as it is."""

REFERENCE = "LoRA, r=8"


@dataclass(frozen=True)
class TaskMethod:
    """A way to fine-tune.

    Attributes:
        name: in results.
        family: of methods drawn alike.
        adapt: makes a frozen encoder trainable.
        learning_rates: to choose from, as many for every method; the head's own stays the same,
            except where it is all that is trained.
        budget: how many of its values are kept, the most useful ones; all, if none.
    """

    name: str
    family: str
    adapt: Adapt
    learning_rates: tuple[float, ...]
    budget: int | None = None


def _peft(configure: Callable[[], PeftConfig]) -> Adapt:
    return lambda encoder: get_peft_model(encoder, configure())


def _svfit(rank: Rank) -> Adapt:
    return _peft(lambda: SVFitConfig(r=rank, target_modules=ATTENTION))


def _lora(rank: int, init: bool | str = True) -> Adapt:
    return _peft(
        lambda: LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights=init, target_modules=ATTENTION
        )
    )


def _ia3() -> PeftConfig:
    return IA3Config(
        target_modules=f"{_KEYS_AND_VALUES}|{_FEED_FORWARD}", feedforward_modules=_FEED_FORWARD
    )


def _vera() -> PeftConfig:
    return VeraConfig(r=64, target_modules=ATTENTION)


def _oft() -> PeftConfig:
    return OFTConfig(r=0, oft_block_size=8, target_modules=ATTENTION)


def _tiny_lora() -> PeftConfig:
    # 64 values a layer, a sixth of full rank; the projections come from a seed.
    return TinyLoraConfig(r=8, u=64, save_projection=False, target_modules=ATTENTION)


def _biases(encoder: nn.Module) -> nn.Module:
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return encoder


def _nothing(encoder: nn.Module) -> nn.Module:
    return encoder


def _everything(encoder: nn.Module) -> nn.Module:
    return encoder.requires_grad_(True)


_SIGMA_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
_LORA_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_SCALE_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

METHODS: Sequence[TaskMethod] = (
    TaskMethod("linear probe", "linear probe", _nothing, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    TaskMethod("SVFit", "SVFit", _svfit(1.0), _SIGMA_RATES),
    TaskMethod("SVFit, energy 0.9", "SVFit", _svfit(0.9), _SIGMA_RATES),
    TaskMethod("SVFit, rank 64", "SVFit", _svfit(64), _SIGMA_RATES),
    TaskMethod("SVFit, rank 8", "SVFit", _svfit(8), _SIGMA_RATES),
    TaskMethod("SVFit, budget 1000", "SVFit, budget", _svfit(1.0), _SIGMA_RATES, budget=1000),
    TaskMethod(REFERENCE, "LoRA", _lora(8), _LORA_RATES),
    TaskMethod("LoRA, r=1", "LoRA", _lora(1), _LORA_RATES),
    TaskMethod("PiSSA, r=8", "PiSSA", _lora(8, "pissa"), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    TaskMethod("(IA)³", "(IA)³", _peft(_ia3), _SCALE_RATES),
    TaskMethod("BitFit", "BitFit", _biases, _LORA_RATES),
    TaskMethod("full", "full", _everything, (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
    TaskMethod("VeRA, r=64", "VeRA", _peft(_vera), _SCALE_RATES),
    TaskMethod("OFT, blocks of 8", "OFT", _peft(_oft), _LORA_RATES),
    TaskMethod("TinyLoRA, u=64", "TinyLoRA", _peft(_tiny_lora), _LORA_RATES),
)


def find_method(name: str) -> TaskMethod:
    """The method of that name."""
    return next(method for method in METHODS if method.name == name)
