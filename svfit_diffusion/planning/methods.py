"""What is trained on hollow models: shifts of singular values, a LoRA, or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from svfit_diffusion.adapters.added import AddedShifts
from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.adapters.patches import Patches
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.planning.hollow import Hollow
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.training.layers import PlannedLayer

_NAME = "subject"
_ANY = "quantised"


@dataclass(frozen=True)
class PutOn:
    """What a method has put on a model.

    Attributes:
        trained: its parameters.
        vectors: of bases, on the device.
        vectors_in_turn: those of them that a CPU reads from their file while it uses them.
    """

    trained: list[Tensor]
    vectors: list[Tensor]
    vectors_in_turn: list[Tensor] = field(default_factory=list)


Method = Callable[[nn.Module, dict[str, PlannedLayer]], PutOn]
"""Puts something on a hollow model's layers, which are given by path, for good."""


def frozen(model: nn.Module, layers: dict[str, PlannedLayer]) -> PutOn:
    """Nothing: the model's own forward and backward pass."""
    return PutOn([], [])


def svfit(model: nn.Module, layers: dict[str, PlannedLayer]) -> PutOn:
    """Shifts of the layers' singular values, as training puts them there.

    How many σ are small decides on which vectors are held; here they fall in a line to zero, much
    as those of random weights do.
    """
    modules = shiftable_layers(model)
    deltas = {
        path: nn.Parameter(torch.zeros(layer.rank, device="meta")) for path, layer in layers.items()
    }
    projections = {}
    with Hollow():  # where models run, so that the basis is in its place
        for path, layer in layers.items():
            shifted = ShiftedLayer(modules[path], _basis(layer))
            shifted.add(_NAME, deltas[path])
            projections[path] = LiveProjection(shifted, {_NAME: 1.0})
    Patches(model).put(projections, {path: modules[path] for path in layers}, None)
    return PutOn(
        list(deltas.values()),
        [tensor for projection in projections.values() for tensor in projection.vectors],
        [tensor for projection in projections.values() for tensor in projection.vectors_in_turn],
    )


def svfit_on_quantised(dtype: torch.dtype) -> Method:
    """`svfit` where layers are quantised, and shifts are added to their outputs in `dtype`."""

    def put(model: nn.Module, layers: dict[str, PlannedLayer]) -> PutOn:
        modules, shifted = shiftable_layers(model), {}
        for path, layer in layers.items():
            basis = _basis(layer, dtype)
            shifted[path] = ShiftedLayer(modules[path], basis, quantization=_ANY)
            shifted[path].add(_NAME, nn.Parameter(torch.zeros(layer.rank, device="meta")))
        added = AddedShifts(model, shifted)
        added.put(added.of_weights({_NAME: 1.0}, None))
        bases = [own.basis for own in shifted.values()]
        return PutOn(
            [own.deltas[_NAME] for own in shifted.values()],
            [vectors for basis in bases for vectors in (basis.u, basis.v)],
        )

    return put


def _basis(layer: PlannedLayer, dtype: torch.dtype = torch.float16) -> Basis:
    sigma = torch.linspace(1, 1 / layer.full_rank, layer.full_rank)[: layer.rank]
    u, v = (
        torch.empty(layer.rank, length, dtype=dtype, device="meta")
        for length in (layer.d_out, layer.d_in)
    )
    return Basis(u, v, sigma)


def can_lora() -> bool:
    """Whether PEFT is installed."""
    return find_spec("peft") is not None


def lora(rank: int) -> Method:
    """PEFT's LoRA of a rank."""
    from peft import LoraConfig, inject_adapter_in_model

    def put(model: nn.Module, layers: dict[str, PlannedLayer]) -> PutOn:
        paths = "|".join(map(re.escape, layers))
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=paths), model)
        cast_training_params([model], dtype=torch.float32)
        return PutOn([p for p in model.parameters() if p.requires_grad], [])

    return put
