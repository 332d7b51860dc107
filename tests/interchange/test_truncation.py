"""Which entries of a shift are kept, and what the rest costs."""

from __future__ import annotations

import pytest
import torch

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.interchange.factors import factors_of
from svfit_diffusion.interchange.truncation import truncation
from svfit_diffusion.spectrum.basis import Basis

SHIFTS = {"a": torch.tensor([0.1, -3.0, 0.0, 2.0]), "b": torch.tensor([1.0]), "c": torch.zeros(2)}


def test_the_largest_are_kept_and_the_error_is_of_the_dropped() -> None:
    found = truncation(SHIFTS, 1, None)
    assert {name: at.tolist() for name, at in found.kept.items()} == {"a": [1], "b": [0], "c": []}
    dropped, whole = 0.1**2 + 2**2, 0.1**2 + 3**2 + 2**2
    assert found.errors == pytest.approx({"a": (dropped / whole) ** 0.5, "b": 0.0, "c": 0.0})
    assert found.error == pytest.approx((dropped / (whole + 1)) ** 0.5)


@pytest.mark.parametrize(("error", "rank"), [(0.0, 3), (0.02, 3), (0.03, 2), (0.5, 2), (0.6, 1)])
def test_the_smallest_rank_within_an_error(error: float, rank: int) -> None:
    found = truncation(SHIFTS, None, error)
    assert found.rank == rank
    assert found.error <= error + 1e-9  # rounding of float64


def test_an_error_of_zero_keeps_what_float64_hardly_sees() -> None:
    shift = torch.tensor([1.0, 1e-12])
    assert truncation({"a": shift}, None, 0.0).rank == 2


def test_a_rank_that_cannot_reach_the_error_names_the_one_that_would() -> None:
    with pytest.raises(InterchangeError, match=r"rank 1 leaves an error of 53.*rank 2 would"):
        truncation(SHIFTS, 1, 0.03)


@pytest.mark.parametrize(("rank", "error"), [(0, None), (True, None), (None, 1.0), (None, -0.1)])
def test_numbers_out_of_range_are_refused(rank: int | None, error: float | None) -> None:
    with pytest.raises(InterchangeError):
        truncation(SHIFTS, rank, error)


def test_an_adapter_that_shifts_nothing_is_refused() -> None:
    for empty in ({}, {"a": torch.zeros(3)}):
        with pytest.raises(InterchangeError, match="shifts nothing"):
            truncation(empty, None, None)


def test_the_error_is_that_of_the_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    u, sigma, vh = torch.linalg.svd(torch.randn(5, 7, generator=generator), full_matrices=False)
    basis = Basis(u.mT.contiguous(), vh, sigma)
    delta = torch.randn(5, generator=generator)
    found = truncation({"a": delta}, 2, None)
    whole = factors_of(basis, delta, torch.arange(5))
    kept = factors_of(basis, delta, found.kept["a"])
    torch.testing.assert_close(whole.matrix, u @ torch.diag(delta) @ vh)
    # Eckart–Young: no matrix of rank 2 is nearer.
    best = torch.linalg.svdvals(whole.matrix)[2:].norm() / whole.norm
    error = (whole.matrix - kept.matrix).norm() / whole.matrix.norm()
    assert float(error) == pytest.approx(found.error, rel=1e-5) == pytest.approx(float(best))
