"""A frozen layer and the shifts that adapters give its singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svfit_diffusion.adapters.room import has_room
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import pad_sum, shifted_weight

SHIFTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer types whose singular values can be shifted."""

_BASES_SHARE = 1 / 8
"""Of the room on an accelerator: what bases may take there, to be at hand at the next change."""

Shiftable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class ShiftedLayer:
    """A frozen layer, its basis, and a shift per adapter. It changes nothing of the layer.

    Args:
        layer: the frozen layer.
        basis: its singular vectors, any float dtype, any device.
        digest: of the base weight that the basis belongs to (`cache.BaseWeights.digests`).
        quantization: how the layer's own weight is quantised (`quantised.quantization_of`); one
            that is cannot be exchanged, and shifts are added to the layer's outputs.

    Attributes:
        quantization: as given.
        deltas: the shift of each adapter, `(r,)` float32.
    """

    def __init__(
        self, layer: Shiftable, basis: Basis, digest: str = "", quantization: str = ""
    ) -> None:
        self.layer = layer
        self.basis = basis
        self.digest = digest
        self.quantization = quantization
        self.deltas: dict[str, nn.Parameter] = {}

    def add(self, adapter_name: str, delta: nn.Parameter) -> None:
        """Add an adapter's shift `(r,)`, float32, of at most the basis's rank."""
        assert adapter_name not in self.deltas and delta.numel() <= self.basis.rank
        self.deltas[adapter_name] = delta

    def active(self, weights: Mapping[str, float]) -> list[tuple[float, nn.Parameter]]:
        """Weight and shift of those adapters that shift this layer; a weight of 0 leaves no trace.

        Args:
            weights: of adapters, by name; those that are not on this layer do not count.
        """
        return [
            (weight, self.deltas[name])
            for name, weight in weights.items()
            if weight != 0 and name in self.deltas
        ]

    def is_live(self, weights: Mapping[str, float]) -> bool:
        """Whether a shift that requires gradients is among the active ones."""
        return any(delta.requires_grad for _, delta in self.active(weights))

    def merged(self, base: Tensor, weights: Mapping[str, float]) -> Tensor:
        """`W' = W + U diag(Σ wₐ δₐ) Vᵀ` of the active adapters, at least one, as `base` lies.

        Args:
            base: the layer's own weight `W`.
            weights: of adapters, by name.
        """
        shift = pad_sum([(w, d.detach().to(base.device)) for w, d in self.active(weights)])
        merged = shifted_weight(base.detach(), self.basis.to(base.device), shift)
        self.basis.release()
        return merged

    @property
    def factorises(self) -> bool:
        """Whether shifts can be applied without `W'`: not under grouped convolutions, as the
        flattened basis spans the groups.
        """
        return isinstance(self.layer, nn.Linear) or self.layer.groups == 1

    def positions(self, x: Tensor) -> int:
        """How many vectors of an input pass through the layer."""
        if isinstance(self.layer, nn.Linear):
            return x.numel() // x.shape[-1]
        channels = x.shape[1 - self.layer.weight.dim()]
        return x.numel() // channels // math.prod(self.layer.stride)

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own map, with its stride and padding, by any weight of its shape."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


def keep_bases_near(layers: Sequence[tuple[ShiftedLayer, torch.device]]) -> None:
    """Bring bases to where the weights of their layers lie, if they take little of the room there.

    From the CPU's memory they would come anew at each change of adapters, slower than all the rest.

    Args:
        layers: each with the device of its weight.
    """
    far = [(own, device) for own, device in layers if own.basis.u.device != device]
    if has_room([(device, own.basis.nbytes) for own, device in far], 1 / _BASES_SHARE):
        for own, device in far:
            mapped, own.basis = own.basis, own.basis.to(device)
            mapped.release()
