"""Mixed batches: a projection whose rows are shifted by different adapters.

A basis belongs to the base model and a shift to its subject, so a batch may hold another subject in
every row: `y = W x + U (δ_row ⊙ Vᵀx)` (DESIGN section 1, point 2). For generating only: shifts are
read once, when the first batch comes, and get no gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from svfit_diffusion import spectral
from svfit_diffusion.errors import BatchError
from svfit_diffusion.layers import ShiftedProjection, refuse_absent_weight
from svfit_diffusion.spectral import Basis

Mix = Mapping[str, float]
"""Weights of the adapters of one prompt, by name; empty for the base model."""


@dataclass(frozen=True)
class RowLayout:
    """Which prompt a row of a batch belongs to, in the order that diffusers' pipelines make.

    The rows of a prompt's images lie side by side. Guidance repeats the whole batch,
    `[unconditional …, conditional …]`.

    Attributes:
        prompts: number of prompts.
        images: rows of each prompt.
        most_repeats: how often guidance may repeat the batch. A bound tells a batch from a video,
            whose frames lie among the rows.
    """

    prompts: int
    images: int = 1
    most_repeats: int = 1

    def prompt_of_rows(self, rows: int) -> list[int]:
        """The prompt of each of `rows` rows.

        Raises:
            BatchError: such a batch cannot come from these prompts.
        """
        batch = self.prompts * self.images
        if not rows or rows % batch or rows > batch * self.most_repeats:
            sizes = [str(batch * repeat) for repeat in range(1, self.most_repeats + 1)]
            raise BatchError(
                f"got a batch of {rows} rows, expected {' or '.join(sizes)}: adapters are given "
                f"for {self.prompts} prompts, {self.images} rows each; call the pipeline with a "
                f"list of {self.prompts} prompts (and as many negative prompts, if any) and the "
                f"num_images_per_prompt given to svfit_adapters_per_prompt()"
            )
        return [row % batch // self.images for row in range(rows)]


class RowProjection:
    """Stands in for a `ShiftedProjection` while each row has adapters of its own.

    Where none of the adapters lies on the layer, or all rows have the same, a call costs what the
    frozen layer costs, and the latter is to the last bit what those adapters active give. Else each
    row's shift is applied factored or through its own `W'`, built at the first call
    (`spectral.row_weights_are_cheaper`).

    Args:
        projection: what it stands in for; left as it is.
        mixes: the adapters of each prompt, of which those on the layer count.
        layout: which rows are whose.
    """

    def __init__(
        self, projection: ShiftedProjection, mixes: Sequence[Mix], layout: RowLayout
    ) -> None:
        self._projection = projection
        self._layout = layout
        here = [
            {name: w for name, w in mix.items() if w != 0 and name in projection.deltas}
            for mix in mixes
        ]
        self._mixes = [mix for i, mix in enumerate(here) if mix not in here[:i]]
        self._mix_of_prompt = [self._mixes.index(mix) for mix in here]
        self._basis: Basis | None = None
        self._shifts: list[Tensor] = []
        self._padded = torch.empty(0)
        self._weights: list[Tensor] = []

    @property
    def shifts_nothing(self) -> bool:
        """Whether every row is the base model's."""
        return not any(self._mixes)

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for `(rows, …, d_in)`, or `(rows, channels, *size)`.

        Raises:
            BatchError: the batch does not fit the layout.
            StateError: the layer's weight is not in memory.
        """
        projection, layer = self._projection, self._projection.layer
        if self.shifts_nothing:
            return projection.project(x, layer.weight, layer.bias)
        rows = [self._mix_of_prompt[p] for p in self._layout.prompt_of_rows(x.shape[0])]
        basis = self._placed_basis()
        if len(self._mixes) == 1:
            return projection.project(x, self._held_weights()[0], layer.bias)
        if self._holds_weights(x):
            weights = self._held_weights()
            return spectral.project_rows(
                projection.project, x, [weights[mix] for mix in rows], layer.bias
            )
        deltas = torch.stack([self._padded[mix] for mix in rows])
        return spectral.factored_rows(
            projection.project, x, layer.weight, layer.bias, basis, deltas
        )

    def _placed_basis(self) -> Basis:
        """The basis in the layer's precision and, like the shifts, beside its weight."""
        weight = self._projection.layer.weight
        basis = self._basis
        if basis is None or basis.u.device != weight.device or basis.u.dtype != weight.dtype:
            refuse_absent_weight(self._projection.layer)
            basis = self._basis = self._projection.basis.to(weight.device, weight.dtype)
            self._shifts = [self._shift(mix) for mix in self._mixes]
            self._padded = pad_sequence(self._shifts, batch_first=True)
            self._weights = []
        return basis

    def _shift(self, mix: Mix) -> Tensor:
        deltas, device = self._projection.deltas, self._projection.layer.weight.device
        terms = [(weight, deltas[name].detach().to(device)) for name, weight in mix.items()]
        return spectral.pad_sum(terms) if terms else torch.zeros(0, device=device)

    def _held_weights(self) -> list[Tensor]:
        """`W'` of each mix; the layer's own for the base."""
        if not self._weights:
            weight, basis = self._projection.layer.weight.detach(), self._placed_basis()
            self._weights = [
                spectral.shifted_weight(weight, basis, shift) if shift.numel() else weight
                for shift in self._shifts
            ]
        return self._weights

    def _holds_weights(self, x: Tensor) -> bool:
        if not self._projection.factorises:
            return True
        weight = self._projection.layer.weight
        d_out = weight.shape[0]
        tokens = self._projection.positions(x[:1])
        return spectral.row_weights_are_cheaper(tokens, d_out, weight.numel() // d_out)
