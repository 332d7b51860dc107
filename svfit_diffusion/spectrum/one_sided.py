"""The shorter side of a basis, for training in less memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.files.mapped import MappedFile
from svfit_diffusion.spectrum.basis import Basis

_ONE_SIDED_TAIL = 0.1
"""Share of the root mean square of σ up to which both vectors of a triplet are kept. Shifts are off
by 6e-4 then, twice what rounding all vectors to float16 costs anyway (`benchmarks/NOTES.md`).
"""
_SMALL = 2**16
"""Numbers in a weight up to which training saves time rather than memory."""


@dataclass(frozen=True)
class OneSidedBasis:
    """A basis with the vectors of its shorter side alone, as far as the weight gives the other.

    Since `W vᵢ = σᵢ uᵢ` and `Wᵀuᵢ = σᵢ vᵢ`, the shift is `U diag(δ) Vᵀ = W V diag(δ/σ) Vᵀ`, or
    `U diag(δ/σ) Uᵀ W`. The rounding errors of a vector thus grow by σ_rms/σᵢ; so where σᵢ is small,
    in the tail, both vectors are kept.

    Attributes:
        near: `(r, min(d_in, d_out))`: right vectors if `inputs_are_shorter`, else left ones.
        far: `(r − head, max(d_in, d_out))`: those of the tail on the other side.
        inverse: `(r,)` float32: 1/σ in the head, 1 in the tail.
        file: what the vectors are mapped from, if they are: in memory only while they are used.
    """

    near: Tensor
    far: Tensor
    inverse: Tensor
    file: MappedFile | None = None

    @property
    def head(self) -> int:
        """Number of leading triplets with one vector."""
        return self.near.shape[0] - self.far.shape[0]

    def truncated(self, rank: int) -> OneSidedBasis:
        """The `rank` leading triplets, as views."""
        far = self.far[: max(rank - self.head, 0)]
        return OneSidedBasis(self.near[:rank], far, self.inverse[:rank], self.file)

    def to(self, device: torch.device) -> OneSidedBasis:
        """The same on `device`."""
        if device == self.near.device:
            return self
        return OneSidedBasis(self.near.to(device), self.far.to(device), self.inverse.to(device))

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles hold the vectors themselves, not the file.
        return OneSidedBasis, (self.near, self.far, self.inverse)

    def __deepcopy__(self, memo: dict[int, Any]) -> OneSidedBasis:
        return self  # it never changes


def is_small(basis: Basis) -> bool:
    """Whether a weight is so small that its basis takes no memory worth saving in training."""
    return basis.u.shape[1] * basis.v.shape[1] <= _SMALL


def inputs_are_shorter(d_out: int, d_in: int) -> bool:
    """Which side of a weight a `OneSidedBasis` lies on: the inputs' if both are alike."""
    return d_in <= d_out


def one_sided(basis: Basis) -> OneSidedBasis:
    """The shorter side of a basis, as views; of a small weight's, both."""
    d_out, d_in = basis.u.shape[1], basis.v.shape[1]
    head = 0
    if not is_small(basis):
        tail_begins = _ONE_SIDED_TAIL * basis.sigma.square().mean().sqrt()
        head = int((basis.sigma > tail_begins).sum())
    near, other = (basis.v, basis.u) if inputs_are_shorter(d_out, d_in) else (basis.u, basis.v)
    far = other[head:]
    inverse = torch.cat([1 / basis.sigma[:head], torch.ones_like(basis.sigma[head:])])
    return OneSidedBasis(near, far, inverse, basis.file)


def head_and_tail(near: Tensor, far: Tensor) -> tuple[int, int]:
    """How many triplets are in the head, and in the tail."""
    return near.shape[0] - far.shape[0], far.shape[0]


def vectors_in_use(
    near: Tensor, far: Tensor, dtype: torch.dtype, file: MappedFile | None
) -> tuple[Tensor, Tensor]:
    """Vectors in the precision they are multiplied in; a file they come from need not stay in
    memory then.
    """
    vectors = near.to(dtype), far.to(dtype)
    if file is not None:
        file.release()
    return vectors
