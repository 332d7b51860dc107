"""Bases of hard matrices: orthonormal, descending, and as many triplets as σ are above zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svfit_diffusion.spectrum import solver


def test_basis_rebuilds_its_matrix_in_descending_order() -> None:
    matrix = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    basis = solver.singular_basis(matrix)
    assert basis.rank == 7
    assert (basis.sigma.diff() <= 0).all()
    rebuilt = (basis.u.mT @ torch.diag(basis.sigma) @ basis.v).double()
    # Entries up to 3, rounded to float32 in vectors, σ and sums.
    torch.testing.assert_close(rebuilt, matrix.double(), rtol=0, atol=5e-6)
    assert torch.equal(basis.truncated(3).v, basis.v[:3])


def spectrum(name: str) -> Tensor:
    """Singular values of a hard case, largest first."""
    return {
        "flat": torch.ones(12),
        "steep": torch.logspace(0, -6, 12),
        "without rank": torch.tensor([3.0, 2.0, 1.0] + [0.0] * 9),
        "nothing": torch.zeros(12),
        "one": torch.tensor([5.0] + [1e-9] * 11),
    }[name].double()


RANKS = {"flat": 12, "steep": 12, "without rank": 3, "nothing": 0, "one": 1}
"""How many of them are above zero, up to rounding."""


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)], ids=str)
@pytest.mark.parametrize("name", RANKS)
def test_a_basis_is_orthonormal_whatever_the_spectrum(name: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(side, 12, generator=generator, dtype=torch.float64)).Q
        for side in shape
    )
    matrix = ((left * spectrum(name)) @ right.mT).float()
    basis = solver.singular_basis(matrix)
    assert basis.rank == RANKS[name]
    assert (basis.sigma > 0).all()
    u, v = basis.u.double(), basis.v.double()
    identity = torch.eye(basis.rank, dtype=torch.float64)
    # The smaller side's vectors are rounded to float32; the others come from a float32 product with
    # an error of some 1e-7 · σ₁/σ, σ ≥ σ₁/1000.
    near, far = (v, u) if shape[0] > shape[1] else (u, v)
    torch.testing.assert_close(near @ near.mT, identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(far @ far.mT, identity, rtol=0, atol=2e-4)
    rebuilt = (u.mT * basis.sigma.double()) @ v
    torch.testing.assert_close(rebuilt, matrix.double(), rtol=0, atol=2e-6)
    assert (basis.sigma.diff() <= 0).all()
