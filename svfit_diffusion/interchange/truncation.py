"""Which entries of shifts a LoRA keeps, and what the others cost.

The singular values of `U diag(δ) Vᵀ` are |δ|, so the k entries of largest |δ| are its best change
of rank k, and the error is the root of the dropped δ² (DESIGN section 1, point 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from svfit_diffusion.errors import InterchangeError

_SHARE = 1e-12  # what summing float64 rounds, with room


@dataclass(frozen=True)
class Truncation:
    """What is kept of shifts.

    Attributes:
        kept: positions `(k,)` of the entries kept, ascending, by layer; zeros are never kept.
        errors: root of the dropped δ² over δ², by layer; 0 for a layer that shifts nothing.
        error: the same over all layers together.
    """

    kept: dict[str, Tensor]
    errors: dict[str, float]
    error: float

    @staticmethod
    def of(shifts: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Truncation:
        """What keeping some entries costs.

        Args:
            shifts: `(r,)` by layer, not all of zeros.
            kept: positions `(k,)` in each.
        """
        squares = _squares(shifts)
        total = {name: float(square.sum()) for name, square in squares.items()}
        # Summed from what is dropped: a difference of sums would end in rounding errors.
        dropped = {n: float(s.index_fill(0, kept[n], 0.0).sum()) for n, s in squares.items()}
        errors = {n: (dropped[n] / total[n]) ** 0.5 if total[n] else 0.0 for n in squares}
        return Truncation(dict(kept), errors, (sum(dropped.values()) / sum(total.values())) ** 0.5)

    @property
    def rank(self) -> int:
        """The largest number of entries kept in a layer."""
        return max(kept.numel() for kept in self.kept.values())


def truncation(shifts: Mapping[str, Tensor], rank: int | None, error: float | None) -> Truncation:
    """Choose what is kept of shifts `(r,)`, by layer.

    Args:
        shifts: by layer.
        rank: how many entries of each layer; all if neither is given.
        error: the largest error over all layers together, as a share in [0, 1); the smallest rank
            that stays within is taken if `rank` is not given.

    Raises:
        InterchangeError: nothing is shifted, an argument is out of range, or the error cannot be
            reached by the rank.
    """
    _check(rank, error)
    squares = _squares(shifts)
    if not any(square.any() for square in squares.values()):
        raise InterchangeError(
            "the adapter shifts nothing: all of its values are zero, or it has none; train it first"
        )
    if error is None:
        return Truncation.of(shifts, _largest(squares, rank))
    needed = _smallest_rank(squares, error)
    if rank is not None and rank < needed:
        found = Truncation.of(shifts, _largest(squares, rank)).error
        raise InterchangeError(
            f"rank {rank} leaves an error of {found:.2%}, more than the {error:.2%} asked for; "
            f"rank {needed} would reach it"
        )
    return Truncation.of(shifts, _largest(squares, rank or needed))


def _check(rank: int | None, error: float | None) -> None:
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise InterchangeError(f"rank must be an int of at least 1, got {rank!r}")
    if error is not None and not 0 <= error < 1:
        raise InterchangeError(f"error is a share in [0, 1), such as 0.01, got {error!r}")


def _squares(shifts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: delta.detach().cpu().double().square() for name, delta in shifts.items()}


def _largest(squares: Mapping[str, Tensor], rank: int | None) -> dict[str, Tensor]:
    """Positions of the `rank` largest entries above zero in each layer; None is all."""
    kept = {}
    for name, square in squares.items():
        count = min(rank or square.numel(), int(square.count_nonzero()))
        kept[name] = square.topk(count).indices.sort().values
    return kept


def _smallest_rank(squares: Mapping[str, Tensor], error: float) -> int:
    """The smallest rank of all layers whose error is within `error`."""
    ordered = pad_sequence([square.sort(descending=True).values for square in squares.values()])
    by_rank = ordered.sum(1)
    # What is left beyond each rank, from the smallest up.
    left = torch.cat([by_rank, by_rank.new_zeros(1)]).flip(0).cumsum(0).flip(0)
    allowed = (error**2 + _SHARE * (error > 0)) * left[0]
    return max(int((left > allowed).sum()), 1)
