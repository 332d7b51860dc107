"""Bases: the leading singular vectors of frozen weights, and the matrices they are defined on.

Convolution weights `(out, in, *kernel)` are read as matrices `(out, in·∏kernel)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.errors import BasisError
from svfit_diffusion.files.mapped import MappedFile
from svfit_diffusion.spectrum.rank import Rank, select_leading, select_rank


@dataclass(frozen=True)
class Basis:
    """Leading singular vectors of one weight, one per row.

    Attributes:
        u: left vectors, `(r, d_out)`: row i is `uᵢ`. Rows, so that a smaller rank is a prefix. Of
            any float dtype, and cast where they are used: rounding them once, when they are
            stored, keeps one basis for all precisions of the base.
        v: right vectors, `(r, d_in)`, `d_in` with the kernel flattened in.
        sigma: singular values, `(r,)`, descending, float32.
        probes: of the vectors, for sketches (`sketch.probes_of`), if they are at hand.
        file: what the vectors are mapped from, if they are.
        is_complete: whether these are all triplets of σ above zero.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    probes: Tensor | None = None
    file: MappedFile | None = None
    is_complete: bool = True

    @property
    def rank(self) -> int:
        """Number of singular triplets held."""
        return self.sigma.numel()

    @property
    def nbytes(self) -> int:
        """Size of the vectors."""
        return self.u.nbytes + self.v.nbytes

    def truncated(self, rank: int) -> Basis:
        """The `rank` leading triplets, as views."""
        assert 0 < rank <= self.rank
        if rank == self.rank:
            return self
        probes = None if self.probes is None else self.probes[:, :rank]
        return Basis(self.u[:rank], self.v[:rank], self.sigma[:rank], probes, self.file, False)

    def leading(self, rank: Rank, energy: Callable[[], float]) -> Basis | None:
        """The triplets that a rank means, as views; None if that is more than are held of many.

        Args:
            rank: as a number, of which a weight that lacks rank gives what it has, or as a share.
            energy: of the weight, asked for where the triplets do not tell it.
        """
        if not self.is_complete:
            if rank == 1.0 and isinstance(rank, float):
                return None
            whole = 0.0 if isinstance(rank, int) else energy()
            count = select_leading(self.sigma, rank, whole)
            return None if count is None else self.truncated(count)
        if not self.rank:
            return self
        at_most = min(rank, self.rank) if isinstance(rank, int) else rank
        return self.truncated(select_rank(self.sigma, at_most))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Basis:
        """The same basis with its vectors on `device`, in `dtype` if given; σ stays float32."""
        dtype = dtype or self.u.dtype
        if (self.u.device, self.u.dtype) == (device, dtype):
            return self
        u, v, sigma = self.u.to(device, dtype), self.v.to(device, dtype), self.sigma.to(device)
        return Basis(u, v, sigma, self.probes, is_complete=self.is_complete)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles hold the vectors themselves, not the file.
        return Basis, (self.u, self.v, self.sigma, self.probes, None, self.is_complete)

    def __deepcopy__(self, memo: dict[int, Any]) -> Basis:
        return self  # it never changes

    def release(self) -> None:
        """Take vectors that are mapped from a file out of memory, until they are used again."""
        if self.file is not None:
            self.file.release()


@dataclass(frozen=True)
class Packed:
    """A weight that is not kept dense, such as a quantised one.

    Attributes:
        shape: `(out, in, *kernel)` of what it stands for.
        device: where it lies.
        quantization: what it is quantised as, for people.
        unpack: makes it dense, in any float dtype.
    """

    shape: torch.Size
    device: torch.device
    quantization: str
    unpack: Callable[[], Tensor]


def unpacked(weight: Tensor | Packed) -> Tensor:
    """A weight as a dense tensor, made now if it is `Packed`."""
    return weight.unpack() if isinstance(weight, Packed) else weight


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """`(out, in·∏kernel)` of a weight of shape `(out, in, *kernel)`."""
    return shape[0], math.prod(shape[1:])


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight `(out, in, *kernel)` as the matrix `(out, in·∏kernel)`."""
    return weight.reshape(weight.shape[0], -1)


def energy_of(matrix: Tensor) -> float:
    """`‖W‖²`, which is `Σ σᵢ²`, summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def full_rank(weight: Tensor | Packed) -> int:
    """Number of singular values of a weight `(out, in, *kernel)`."""
    return min(matrix_shape(weight.shape))


def canonical_weight(weight: Tensor | Packed) -> Tensor:
    """The float16 rounding `(out, in·∏kernel)` of a weight, on which its basis is defined.

    A base loaded in float32 and its float16 variant thus share one basis, exactly.

    Raises:
        BasisError: the weight is sparse, complex, quantised, float8, not in memory, or not finite
            in float16.
    """
    weight = unpacked(weight)
    if weight.is_meta:
        raise BasisError(
            "a weight is not in memory (sequential offloading puts it on the meta device): "
            "load the adapter on a base model without it; model offloading works"
        )
    if weight.layout != torch.strided:
        raise BasisError(f"cannot decompose a weight of layout {weight.layout}: make it dense")
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise BasisError(
            f"cannot decompose a weight of dtype {weight.dtype}: load the base model unquantised, "
            f"in float32, float16 or bfloat16; enable_layerwise_casting() may store it in float8"
        )
    rounded = as_matrix(weight.detach()).to(torch.float16)
    # One sum instead of a mask: NaN and infinity pass into it, and finite float16s do not overflow.
    if not torch.isfinite(rounded.sum(dtype=torch.float32)):
        raise BasisError(
            "a weight holds NaN, infinity or values beyond ±65504; "
            "the base model file is damaged or not usable in float16"
        )
    return rounded
