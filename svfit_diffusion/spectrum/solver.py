"""How a basis is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis, energy_of
from svfit_diffusion.spectrum.leading import leading_basis
from svfit_diffusion.spectrum.products import multiply
from svfit_diffusion.spectrum.rank import Rank

_TAIL = 1e-3
_RANK_DEFICIENT = 1e-7
"""Shares of the largest singular value; `singular_basis` tells what for."""


def solve(matrix: Tensor, rank: Rank) -> Basis:
    """The singular triplets of a matrix `(d_out, d_in)` that a rank means, of σ above zero.

    Those of a large matrix alone where few are wanted and each can be proven; else all are computed
    and the rest is dropped. A shift by either is the same up to `leading.ANGLE`.

    Returns:
        As `singular_basis`.
    """
    basis = leading_basis(matrix, rank) or singular_basis(matrix)
    found = basis.leading(rank, lambda: energy_of(matrix))
    assert found is not None
    return found


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU where that is one of Apple's, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def singular_basis(matrix: Tensor) -> Basis:
    """All singular triplets of a matrix `(d_out, d_in)` whose σ is above zero, up to rounding.

    Vectors of σ = 0 are left out: any rotation of them is as good, so that shifts along them would
    be another change on each machine.

    The eigenvectors of the smaller of `W Wᵀ` and `WᵀW`, in float64, are the singular vectors of
    that side; the others follow from W. That is as fast as a float32 SVD and far more exact, since
    float64 leaves room for squaring σ; where it does not (σ below a thousandth of the largest), an
    SVD of the remaining few rows finishes, and a matrix that lacks rank gets an SVD as a whole.
    Solvers on different machines thus agree to some 1e-10, and their roundings nearly always.

    Returns:
        A basis on the matrix's device, contiguous, float32; of rank 0 where the matrix is zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.contiguous()  # so that its layout in memory decides no rounding
    wide = (matrix.mT if tall else matrix).double()
    left, sigma, right = _wide_svd(wide)
    rank = int((sigma > _RANK_DEFICIENT * sigma[0]).sum())
    u, v = (right, left) if tall else (left, right)
    return Basis(u[:rank].float().contiguous(), v[:rank].float().contiguous(), sigma[:rank].float())


def _wide_svd(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors `(k, k)` and right vectors `(k, n)` in rows, σ `(k,)` descending; k ≤ n."""
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    left = vectors.flip(1).mT
    sigma = values.flip(0).clamp(min=0).sqrt()
    head = int((sigma > _TAIL * sigma[0]).sum())
    tail, tail_sigma, tail_right = torch.linalg.svd(left[head:] @ wide, full_matrices=False)
    if not sigma[0] > 0 or (tail_sigma <= _RANK_DEFICIENT * sigma[0]).any():
        u, sigma, right = torch.linalg.svd(wide, full_matrices=False)
        return u.mT, sigma, right
    # A float32 product: its error, of 1e-7 σ₁/σ, stays below that of rounding to float16.
    head_right = multiply(left[:head].float(), wide.float()).double() / sigma[:head, None]
    return (
        torch.cat([left[:head], tail.mT @ left[head:]]),
        torch.cat([sigma[:head], tail_sigma]),
        torch.cat([head_right, tail_right]),
    )
