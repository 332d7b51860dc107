"""Whether singular triplets are what they say: of one another, and of the weight they belong to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.sketch import probes_of

TOLERANCE = 2e-3
"""Bound of `residual` and `orthonormality`. Float16 rounds a vector by up to 2⁻¹¹ of its length, so
a residual by up to 2⁻¹⁰ of σ₁, and a product of two vectors by as much; this is twice that."""
ENERGY_TOLERANCE = 1e-6
"""Bound of `missing_energy`. Float32 rounds σ by up to 2⁻²⁴, so a square by 1.2e-7 of itself."""

_STARTS, _ROUNDS = 8, 12
"""Of `overlooked`."""
_ORDER_TOLERANCE = 1e-6
"""Where the solver joins two ranges of σ, it may be out of order by a rounding."""
_PROBES_TOLERANCE = 1e-3
"""Probes are about 1; float32 sums of a few thousand products differ by some 1e-5."""


def residual(basis: Basis, matrix: Tensor) -> float:
    """The largest of `‖W vᵢ − σᵢ uᵢ‖` and `‖Wᵀuᵢ − σᵢ vᵢ‖`, as a share of σ₁; 0 at rank 0.

    Args:
        basis: of any float dtype, on the device of the matrix.
        matrix: `W (d_out, d_in)`.
    """
    if not basis.rank:
        return 0.0
    u, v, sigma, weight = basis.u.float(), basis.v.float(), basis.sigma[:, None], matrix.float()
    right = (v @ weight.mT - sigma * u).norm(dim=1)
    left = (u @ weight - sigma * v).norm(dim=1)
    return float(torch.maximum(right, left).max() / basis.sigma[0])


def orthonormality(basis: Basis) -> float:
    """The largest difference of `uᵢ·uⱼ` and `vᵢ·vⱼ` from 1 for i = j and from 0 otherwise."""
    if not basis.rank:
        return 0.0
    identity = torch.eye(basis.rank, device=basis.u.device)
    sides = [side.float() for side in (basis.u, basis.v)]
    return float(torch.stack([(side @ side.mT - identity).abs().max() for side in sides]).max())


def missing_energy(basis: Basis, matrix: Tensor) -> float:
    """The share of `‖W‖²` by which `Σσ²` differs from it: that of triplets left out, or too many.

    Args:
        basis: all triplets of σ above zero.
        matrix: `W (d_out, d_in)`.
    """
    whole, found = matrix.double().square().sum(), basis.sigma.double().square().sum()
    return float((whole - found).abs() / whole) if whole else float(found)


def overlooked(basis: Basis, matrix: Tensor) -> float:
    """The share of its last σ by which a basis's weight exceeds that without the triplets; 0 if it
    does not.

    What is left of the weight is multiplied by random vectors some times, which finds its largest
    singular value from below: a larger one that is missing stands out, a rounding does not.

    Args:
        basis: the leading triplets.
        matrix: `W (d_out, d_in)`.
    """
    u, v, sigma, weight = basis.u.float(), basis.v.float(), basis.sigma, matrix.float()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(weight.shape[1], _STARTS, generator=generator).to(weight.device)
    found = 0.0
    for _ in range(_ROUNDS):
        x = torch.linalg.qr(x).Q
        y = weight @ x - u.mT @ (sigma[:, None] * (v @ x))
        found = float(torch.linalg.matrix_norm(y, 2))
        x = weight.mT @ y - v.mT @ (sigma[:, None] * (u @ y))
    return max(found / float(sigma[-1]) - 1, 0.0)


def check_numbers(basis: Basis) -> None:
    """Raise `ValueError` unless all is finite, σ positive and descending, and probes the vectors'.

    It takes a part of the time of `check_belongs`, and no weight.
    """
    if not all(torch.isfinite(t).all() for t in (basis.u, basis.v, basis.sigma)):
        raise ValueError("it holds NaN or infinity")
    sigma = basis.sigma
    if not (sigma > 0).all() or (sigma[1:] > sigma[:-1] * (1 + _ORDER_TOLERANCE)).any():
        raise ValueError("its singular values are not positive and descending")
    difference = probes_of(basis) - probes_of(Basis(basis.u, basis.v, sigma))
    if not (difference.abs() <= _PROBES_TOLERANCE).all():
        raise ValueError("its probes are not those of its vectors")


def check_belongs(basis: Basis, matrix: Tensor) -> None:
    """Raise `ValueError` unless a basis is of a matrix `(d_out, d_in)`, on its device: all
    triplets, or, if it is not complete, the leading ones.
    """
    if (basis.u.shape[1], basis.v.shape[1]) != tuple(matrix.shape):
        raise ValueError(f"it is not of a weight of shape {tuple(matrix.shape)}")
    checks: list[tuple[str, Callable[[Basis, Tensor], float], float]] = [
        ("residual of its vectors", residual, TOLERANCE),
        ("departure from orthonormal vectors", lambda b, _: orthonormality(b), TOLERANCE),
        ("share of the weight missing", missing_energy, ENERGY_TOLERANCE)
        if basis.is_complete
        else ("share by which a missing singular value is larger", overlooked, TOLERANCE),
    ]
    for what, check, bound in checks:
        found = check(basis, matrix)
        if not found <= bound:
            raise ValueError(f"{what} {found:.2g}, expected at most {bound:g}")
