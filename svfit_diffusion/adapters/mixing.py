"""Mixed batches: a projection whose rows are shifted by different adapters.

A basis belongs to the base model and a shift to its subject, so a batch may hold another subject in
every row: `y = W x + U (δ_row ⊙ Vᵀx)` (DESIGN section 1, point 2). For generating only: shifts are
read once, when the first batch comes, and get no gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.live import refuse_absent_weight
from svfit_diffusion.adapters.rows import RowLayout
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.rows import (
    factored_rows,
    project_parts,
    project_rows,
    row_weights_are_cheaper,
)
from svfit_diffusion.spectrum.shift import pad_sum, shifted_weight, shifted_weights

Mix = Mapping[str, float]
"""Weights of the adapters of one prompt, by name; empty for the base model."""


class RowProjection:
    """What a layer computes while each row has adapters of its own.

    Where none of the adapters lies on the layer, or all rows have the same, a call costs what the
    frozen layer costs, and the latter is to the last bit what those adapters active give. Else each
    row's shift is applied factored or through its own `W'`, built at the first call
    (`rows.row_weights_are_cheaper`).

    Args:
        shifted: the layer, with its own weight in place.
        mixes: the adapters of each prompt, of which those on the layer count.
        layout: which rows are whose.
    """

    def __init__(self, shifted: ShiftedLayer, mixes: Sequence[Mix], layout: RowLayout) -> None:
        self._shifted = shifted
        self._layout = layout
        here = [
            {name: w for name, w in mix.items() if w != 0 and name in shifted.deltas}
            for mix in mixes
        ]
        self._mixes = [mix for i, mix in enumerate(here) if mix not in here[:i]]
        self._mix_of_prompt = [self._mixes.index(mix) for mix in here]
        self._basis: Basis | None = None
        self._shifts: list[Tensor] = []
        self._padded = torch.empty(0)
        self._weights: list[Tensor] = []
        self._transposed = torch.empty(0)

    @property
    def shifts_nothing(self) -> bool:
        """Whether every row is the base model's."""
        return not any(self._mixes)

    def shift(self, rows: int, device: torch.device) -> Tensor:
        """The shift of each of so many rows, `(rows, r)` float32.

        Raises:
            BatchError: the batch does not fit the layout.
        """
        shifts = pad_sequence(
            [self._shift(mix).to(device) for mix in self._mixes], batch_first=True
        )
        return shifts[[self._mix_of_prompt[p] for p in self._layout.prompt_of_rows(rows)]]

    def close(self) -> None:
        """Be the layer from now on: someone may keep a wrapped processor or forward of ours."""
        self._mixes = [{}]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for `(rows, …, d_in)`, or `(rows, channels, *size)`.

        Raises:
            BatchError: the batch does not fit the layout.
            StateError: the layer's weight is not in memory.
        """
        shifted, layer = self._shifted, self._shifted.layer
        if self.shifts_nothing:
            return shifted.project(x, layer.weight, layer.bias)
        rows = [self._mix_of_prompt[p] for p in self._layout.prompt_of_rows(x.shape[0])]
        basis = self._placed_basis()
        if len(self._mixes) == 1:
            return shifted.project(x, self._held_weights()[0], layer.bias)
        if self._holds_weights(x):
            if layer.weight.dim() == 2:
                return self._project_linear(x)
            weights = self._held_weights()
            return project_rows(shifted.project, x, [weights[mix] for mix in rows], layer.bias)
        deltas = torch.stack([self._padded[mix] for mix in rows])
        return factored_rows(shifted.project, x, layer.weight, layer.bias, basis, deltas)

    def _project_linear(self, x: Tensor) -> Tensor:
        """The output of a linear layer through the `W'` of each prompt, which lie side by side and
        transposed, as a product of many rows reads them fastest.
        """
        weights, order = self._held_transposed(), self._mix_of_prompt
        if order != list(range(len(weights))):
            weights = weights[order]
        bias, repeats = self._shifted.layer.bias, self._layout.repeats(len(x))
        parts = [project_parts(part, weights, bias) for part in x.chunk(repeats)]
        return torch.cat(parts) if repeats > 1 else parts[0]

    @torch.inference_mode(False)
    def _placed_basis(self) -> Basis:
        """The basis in the layer's precision and, like the shifts, beside its weight."""
        weight = self._shifted.layer.weight
        basis = self._basis
        if basis is None or basis.u.device != weight.device or basis.u.dtype != weight.dtype:
            refuse_absent_weight(weight)
            basis = self._basis = self._shifted.basis.to(weight.device, weight.dtype)
            self._shifts = [self._shift(mix) for mix in self._mixes]
            self._padded = pad_sequence(self._shifts, batch_first=True)
            self._weights = []
            self._transposed = torch.empty(0)
        return basis

    def _shift(self, mix: Mix) -> Tensor:
        deltas, device = self._shifted.deltas, self._shifted.layer.weight.device
        terms = [(weight, deltas[name].detach().to(device)) for name, weight in mix.items()]
        return pad_sum(terms) if terms else torch.zeros(0, device=device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _held_weights(self) -> list[Tensor]:
        """`W'` of each mix; the layer's own for the base."""
        if not self._weights:
            weight, basis = self._shifted.layer.weight.detach(), self._placed_basis()
            self._weights = [
                shifted_weight(weight, basis, shift) if shift.numel() else weight
                for shift in self._shifts
            ]
        return self._weights

    @torch.inference_mode(False)
    @torch.no_grad()
    def _held_transposed(self) -> Tensor:
        """`W'` of each mix, `(mixes, d_in, d_out)`."""
        if not len(self._transposed):
            weight, basis = self._shifted.layer.weight.detach(), self._placed_basis()
            self._transposed = shifted_weights(weight, basis, self._padded)
        return self._transposed

    def _holds_weights(self, x: Tensor) -> bool:
        if not self._shifted.factorises:
            return True
        weight = self._shifted.layer.weight
        d_out = weight.shape[0]
        tokens = self._shifted.positions(x[:1])
        return row_weights_are_cheaper(tokens, d_out, weight.numel() // d_out)
