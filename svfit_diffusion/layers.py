"""One parametrisation for every shifted layer: a frozen weight and a shift per adapter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from svfit_diffusion import spectral
from svfit_diffusion.errors import StateError
from svfit_diffusion.linear import factored_linear, merged_linear
from svfit_diffusion.spectral import Basis, OneSidedBasis

SHIFTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer types whose singular values can be shifted."""

Shiftable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class ShiftedProjection:
    """A frozen layer seen with its singular values shifted by the active adapters.

    Called like the layer, it computes `W' x + b` with `W' = W + U diag(Σ wₐ δₐ) Vᵀ`. It is no
    `nn.Module` and owns no part of the model: the layer stays where it is, untouched.

    While an active `δ` requires a gradient, `W'` is used factored or merged, whichever costs less
    for the shapes at hand (`spectral.merging_is_cheaper`). Otherwise `W'` is computed once, in
    `refresh`, and held, so that a call costs what the frozen layer costs.

    Args:
        layer: the frozen layer.
        basis: its singular vectors, any float dtype, any device.

    Attributes:
        deltas: the shift of each adapter, `(r,)` float32.
        stand_in: computes the output instead, while there is one (`mixing.RowProjection`).
    """

    def __init__(self, layer: Shiftable, basis: Basis) -> None:
        self.layer = layer
        self.basis = basis
        self.deltas: dict[str, nn.Parameter] = {}
        self.stand_in: Callable[[Tensor], Tensor] | None = None
        self._active: list[tuple[float, Tensor]] = []
        self._held: Tensor | None = None
        self._one_sided: OneSidedBasis | None = None
        self._place = (layer.weight.device, layer.weight.dtype)

    def add(self, adapter_name: str, delta: nn.Parameter) -> None:
        """Add an adapter's shift `(r,)`, float32; it takes effect at `activate`."""
        assert adapter_name not in self.deltas and delta.numel() <= self.basis.rank
        self.deltas[adapter_name] = delta

    def remove(self, adapter_name: str) -> None:
        """Forget an adapter; the caller activates what remains."""
        del self.deltas[adapter_name]

    def activate(self, weights: dict[str, float]) -> None:
        """Apply the adapters named, each times its weight; a weight of 0 leaves no trace."""
        self._active = [
            (weight, self.deltas[name])
            for name, weight in weights.items()
            if weight != 0 and name in self.deltas
        ]
        self.refresh()

    def refresh(self) -> None:
        """Follow a change of a frozen δ, of `requires_grad` or of the layer's weight."""
        self._held = self._one_sided = None
        if not self._active:
            return
        weight = self.layer.weight
        self._place = (weight.device, weight.dtype)
        live = any(delta.requires_grad for _, delta in self._active)
        if live and spectral.is_small(self.basis):
            # Once, instead of in every pass; float16 loses nothing.
            self.basis = self.basis.to(weight.device, torch.float32)
        if live and isinstance(self.layer, nn.Linear):
            self._one_sided = spectral.one_sided(self.basis).to(weight.device)
        else:
            self.basis = self.basis.to(weight.device)
        if not live:
            with torch.no_grad():
                self._held = self.effective_weight()
        self.basis.release()

    def shift(self) -> Tensor:
        """The combined shift `(r,)` of the active adapters, float32, on the layer's device."""
        device = self.layer.weight.device
        return spectral.pad_sum([(weight, delta.to(device)) for weight, delta in self._active])

    def effective_weight(self) -> Tensor:
        """`W'` in the weight's shape and dtype; the weight itself with no adapter active."""
        if not self._active:
            return self.layer.weight
        weight = self.layer.weight
        return spectral.shifted_weight(weight, self.basis.to(weight.device), self.shift())

    def __call__(self, x: Tensor) -> Tensor:
        """`W' x + b`, shaped as the layer would."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """`W' x + b`; also what replaces the `forward` of a layer shifted in place."""
        if self.stand_in is not None:
            return self.stand_in(x)
        weight = self.layer.weight
        if not self._active:
            return self.project(x, weight, self.layer.bias)
        if self._place != (weight.device, weight.dtype):
            self._refresh_after_move()
        if self._held is not None:
            return self.project(x, self._held, self.layer.bias)
        delta, merges = self.shift(), self._merges(x)
        if self._one_sided is not None:
            linear = merged_linear if merges else factored_linear
            return linear(x, weight, self.layer.bias, self._one_sided, delta)
        if merges:
            merged = spectral.shifted_weight(weight, self.basis, delta)
            return self.project(x, merged, self.layer.bias)
        change = spectral.factored_shift(self.project, x, self.basis, delta, weight.shape[1:])
        return self.project(x, weight, self.layer.bias) + change

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _refresh_after_move(self) -> None:
        """Rebuild `W'` after `pipe.to(...)`: outside compiled graphs, since it changes state."""
        refuse_absent_weight(self.layer)
        self.refresh()

    @property
    def factorises(self) -> bool:
        """Whether shifts can be applied without `W'`: not under grouped convolutions, as the
        flattened basis spans the groups.
        """
        return isinstance(self.layer, nn.Linear) or self.layer.groups == 1

    def positions(self, x: Tensor) -> int:
        """How many vectors of an input pass through the projection."""
        if isinstance(self.layer, nn.Linear):
            return x.numel() // x.shape[-1]
        channels = x.shape[1 - self.layer.weight.dim()]
        return x.numel() // channels // math.prod(self.layer.stride)

    def _merges(self, x: Tensor) -> bool:
        if not self.factorises:
            return True
        weight = self.layer.weight
        d_out = weight.shape[0]
        rank = max(delta.numel() for _, delta in self._active)
        d_in = weight.numel() // d_out
        derives = self._one_sided is not None and self._one_sided.head > 0
        return spectral.merging_is_cheaper(self.positions(x), d_out, d_in, rank, derives)

    def project(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own map, with its stride and padding, by any weight of its shape."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return torch.nn.functional.linear(x, weight, bias)
        return layer._conv_forward(x, weight, bias)


def refuse_absent_weight(layer: Shiftable) -> None:
    """Raise `StateError` if sequential offloading has taken a layer's weight out of memory."""
    if layer.weight.is_meta:
        raise StateError(
            "adapters do not work with sequential CPU offload, which takes weights away from "
            "under them; use enable_model_cpu_offload()"
        )
