"""Layers in training: outputs that follow a shift while it changes, and give it gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.errors import StateError
from svfit_diffusion.spectrum.linear import factored_linear, merged_linear
from svfit_diffusion.spectrum.one_sided import OneSidedBasis, is_small, one_sided
from svfit_diffusion.spectrum.rows import project_rows
from svfit_diffusion.spectrum.shift import (
    factored_shift,
    merging_is_cheaper,
    pad_sum,
    shifted_weight,
)


class ShiftedProjection:
    """`W' x + b` with `W' = W + U diag(δ) Vᵀ` of one layer, by any shift, with its gradients.

    `W'` is used factored or merged, whichever costs less for the shapes at hand
    (`shift.merging_is_cheaper`). The layer keeps its own weight. Where equal parts of the rows have
    shifts of their own, the factored way takes one product for all.

    Args:
        shifted: the layer; its basis is brought to where the weight lies.
    """

    def __init__(self, shifted: ShiftedLayer) -> None:
        self._shifted = shifted
        self._one_sided: OneSidedBasis | None = None
        self._place_basis()

    @property
    def vectors(self) -> list[Tensor]:
        """What it keeps of the basis on the layer's device."""
        if self._one_sided is None:
            return [self._shifted.basis.u, self._shifted.basis.v]
        return [self._one_sided.near, self._one_sided.far, self._one_sided.inverse]

    @property
    def vectors_in_turn(self) -> list[Tensor]:
        """Those of them that a CPU reads from their file while it uses them, and not before."""
        if self._one_sided is None or is_small(self._shifted.basis):
            return []
        return [self._one_sided.near, self._one_sided.far]

    @torch.inference_mode(False)
    def _place_basis(self) -> None:
        """Bring the basis to the layer's device, in the form that training takes."""
        shifted, weight = self._shifted, self._shifted.layer.weight
        self._place = (weight.device, weight.dtype)
        given = shifted.basis
        if is_small(given):
            # Once, instead of in every pass; float16 loses nothing.
            shifted.basis = given.to(weight.device, torch.float32)
        if isinstance(shifted.layer, nn.Linear):
            self._one_sided = one_sided(shifted.basis).to(weight.device)
        else:
            shifted.basis = shifted.basis.to(weight.device)
        given.release()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _follow_move(self) -> None:
        """After `pipe.to(...)`: outside compiled graphs, since it changes state."""
        refuse_absent_weight(self._shifted.layer.weight)
        self._place_basis()

    def forward(self, x: Tensor, delta: Tensor) -> Tensor:
        """`W' x + b`, shaped as the layer would.

        Args:
            x: layer input.
            delta: `(r,)` float32, on the layer's device, of at most the basis's rank; or
                `(parts, r)`, one for each of so many equal parts of the rows.
        """
        shifted, layer = self._shifted, self._shifted.layer
        # Detached: a backward pass finds the memory that was computed with, whatever offloading
        # puts in the parameter meanwhile.
        weight, bias = layer.weight.detach(), layer.bias
        if self._place != (weight.device, weight.dtype):
            self._follow_move()
        parts, merges = delta.numel() // delta.shape[-1], self._merges(x, delta)
        if self._one_sided is not None:
            linear = merged_linear if merges else factored_linear
            return linear(x, weight, bias, self._one_sided, delta)
        if merges:
            each = delta.view(parts, -1)
            weights = [shifted_weight(weight, shifted.basis, own) for own in each]
            if parts == 1:
                return shifted.project(x, weights[0], bias)
            return project_rows(shifted.project, x, weights, bias)
        if delta.dim() == 2:
            delta = delta.repeat_interleave(len(x) // parts, 0)
        change = factored_shift(shifted.project, x, shifted.basis, delta, weight.shape[1:])
        return shifted.project(x, weight, bias) + change

    def _merges(self, x: Tensor, delta: Tensor) -> bool:
        shifted, weight = self._shifted, self._shifted.layer.weight
        if not shifted.factorises:
            return True
        d_out, rank = weight.shape[0], delta.shape[-1]
        derives = self._one_sided is not None and self._one_sided.head > 0
        # A part has a `W'` of its own, for the tokens of its rows alone.
        tokens = shifted.positions(x) * rank // delta.numel()
        return merging_is_cheaper(tokens, d_out, weight.numel() // d_out, rank, derives)


class ActiveShift:
    """`Σ wₐ δₐ` on one layer, of shifts that may change between two calls.

    Args:
        shifted: the layer.
        weights: of the active adapters, by name; at least one of them is on the layer.
        owners: whose rows are whose, if each has its own.
    """

    def __init__(
        self,
        shifted: ShiftedLayer,
        weights: Mapping[str, float],
        owners: RowOwners | None = None,
    ) -> None:
        self._deltas = shifted.deltas
        self._active = shifted.active(weights)
        self._owners = owners

    def __call__(self, rows: int, device: torch.device) -> Tensor:
        """The shift for a batch of so many rows, float32: `(r,)` of the active adapters together,
        or `(parts, r)` of those that own equal parts of the rows.
        """
        if self._owners is None:
            return pad_sum([(weight, delta.to(device)) for weight, delta in self._active])
        return torch.stack([self._deltas[name].to(device) for name in self._owners.parts(rows)])


class LiveProjection:
    """A `ShiftedProjection` by `Σ wₐ δₐ`, of shifts that may change between two calls.

    Args:
        shifted: the layer.
        weights: of the active adapters, by name.
        owners: whose rows are whose, if each has its own.

    Attributes:
        paused: whether it is the layer itself for a while.
    """

    def __init__(
        self,
        shifted: ShiftedLayer,
        weights: Mapping[str, float],
        owners: RowOwners | None = None,
    ) -> None:
        self._shifted = shifted
        self._shift: ActiveShift | None = ActiveShift(shifted, weights, owners)
        self._projection = ShiftedProjection(shifted)
        self.paused = False

    @property
    def vectors(self) -> list[Tensor]:
        """What it keeps of the basis on the layer's device."""
        return self._projection.vectors

    @property
    def vectors_in_turn(self) -> list[Tensor]:
        """Those of them that a CPU reads from their file while it uses them, and not before."""
        return self._projection.vectors_in_turn

    def close(self) -> None:
        """Be the layer from now on: someone may keep a wrapped processor or forward of ours."""
        self._shift = None

    def forward(self, x: Tensor) -> Tensor:
        """`W' x + b`, shaped as the layer would."""
        layer = self._shifted.layer
        if self.paused or self._shift is None:
            return self._shifted.project(x, layer.weight, layer.bias)
        return self._projection.forward(x, self._shift(len(x), layer.weight.device))


def refuse_absent_weight(weight: Tensor) -> None:
    """Raise `StateError` if offloading has taken a layer's weight out of memory."""
    if weight.is_meta:
        raise StateError(
            "a layer's weight is not in memory: training and adapters per prompt do not work with "
            "sequential CPU offload; use enable_model_cpu_offload()"
        )
