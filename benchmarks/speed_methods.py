"""What the speed benchmark trains: our method, its peers, and two that only timing needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.adapting import Adapted, Models, lora
from benchmarks.methods import Method, find_method
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import load_bases

LORA = "LoRA, r=8"
SVFIT = "SVFit"
SVFIT_99 = "SVFit, energy 0.99"
FLOOR = "frozen (floor)"
FULL = "full"


class AutogradRebuild(nn.Module):
    """Parametrises a weight as `W + U diag(δ) Vᵀ`, computed in every forward by plain autograd.

    Args:
        basis: full rank, where the weight is.
    """

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.u, self.v = basis.u, basis.v
        self.delta = nn.Parameter(basis.sigma.new_zeros(basis.rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The shifted weight `(d_out, d_in)`."""
        return weight + ((self.u.mT * self.delta) @ self.v).to(weight.dtype)


def _rebuild(models: Models, steps: int) -> Adapted:
    """The straightforward way to train singular values."""
    parameters = []
    for model in models.values():
        layers = attention_layers(model)
        for path, basis in load_bases(base_weights(model, layers), show_progress=False).items():
            weight = layers[path].weight
            rebuild = AutogradRebuild(basis.to(weight.device, weight.dtype))
            parametrize.register_parametrization(layers[path], "weight", rebuild)
            parameters.append(rebuild.delta)
    return Adapted(parameters, _save_nothing)


def _floor(models: Models, steps: int) -> Adapted:
    """Train nothing, but run the backward pass that every adapter of the attention needs.

    The first query projection's output is made to require a gradient, as it does where that
    projection is trained. The gradient then flows from the loss through all later layers down to
    there and not below, as it does in training; no layer's weight or adapter gets one.
    """
    for model in models.values():
        layers = attention_layers(model)
        first = next(layers[path] for path in layers if path.endswith((".to_q", ".q_proj")))
        first.register_forward_hook(_require_gradient)
    return Adapted([], _save_nothing)


def _require_gradient(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()


def _save_nothing(folder: Path) -> None:
    """For methods that are only timed."""


# Learning rates are for judging quality; timing uses one of its own.
_UNUSED_RATES = (0.0,)

METHODS = (
    find_method(SVFIT),
    find_method(SVFIT_99),
    find_method(LORA),
    Method("LoRA, r=4", lora(4), _UNUSED_RATES, "LoRA"),
    find_method("PiSSA, r=8"),
    find_method("OFT, r=8"),
    find_method("(IA)³"),
    Method("autograd rebuild", _rebuild, _UNUSED_RATES, "rebuild"),
    Method(FLOOR, _floor, _UNUSED_RATES, "frozen"),
)
"""All that share the base's weights; full fine-tuning has its own."""


def chosen(*names: str) -> tuple[Method, ...]:
    """Some of them."""
    return tuple(method for method in METHODS if method.name in names)
