"""Leading triplets alone: right to the last of them, or left to the solver of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from svfit_diffusion.spectrum import leading, solver
from svfit_diffusion.spectrum.basis import Basis, energy_of
from svfit_diffusion.spectrum.leading import ANGLE, leading_basis
from svfit_diffusion.spectrum.rank import select_rank

SIDE = 160


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that spaces, made of blocks of 16, would hardly converge within the usual share."""
    monkeypatch.setattr(leading, "_SMALLEST", 1)
    monkeypatch.setattr(leading, "_SPACE", 0.95)


def matrix_of(sigma: Tensor, shape: tuple[int, int] = (SIDE, SIDE)) -> tuple[Tensor, Basis]:
    """A float64 matrix with these singular values, and its triplets as it was made of them."""
    generator = torch.Generator().manual_seed(4)
    u, v = (
        torch.linalg.qr(torch.randn(side, len(sigma), generator=generator, dtype=torch.float64)).Q
        for side in shape
    )
    return (u * sigma) @ v.mT, Basis(u.mT, v.mT, sigma)


def spectrum(name: str, count: int = SIDE) -> Tensor:
    places = torch.arange(count, dtype=torch.float64)
    return {
        "slow": (1 + places / 4) ** -0.5,
        "fast": torch.exp(-places / 10),
        "steep": 10 ** (-places / 4),
        "one stands out": torch.cat([torch.tensor([1e3]), 2 - places[1:] / count]).double(),
    }[name]


def distance(found: Basis, right: Basis) -> float:
    """How far shifts by two bases are apart, as a share."""
    delta = torch.randn(found.rank, generator=torch.Generator().manual_seed(1)).double()
    one, other = (
        (basis.u[: found.rank].double().mT * delta) @ basis.v[: found.rank].double()
        for basis in (found, right)
    )
    return float((one - other).norm() / delta.norm())


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 400), (400, SIDE)], ids=str)
@pytest.mark.parametrize("name", ["slow", "fast", "steep", "one stands out"])
@pytest.mark.parametrize("rank", [1, 2, 12])
def test_leading_triplets_are_the_first_of_all(
    name: str, shape: tuple[int, int], rank: int
) -> None:
    matrix, right = matrix_of(spectrum(name), shape)
    basis = leading_basis(matrix, rank)
    assert basis is not None and basis.rank == rank and not basis.is_complete
    assert basis.u.is_contiguous() and basis.v.is_contiguous()
    # On either side a vector is off by about ANGLE at most, and float32 rounds to 1e-7.
    assert distance(basis, right) < 3 * ANGLE
    torch.testing.assert_close(basis.sigma.double(), right.sigma[:rank], rtol=1e-6, atol=0)


def test_float16_weights_give_what_the_solver_of_all_gives() -> None:
    matrix = torch.randn(SIDE, 200, generator=torch.Generator().manual_seed(0)).half()
    found, every = leading_basis(matrix, 6), solver.singular_basis(matrix)
    assert found is not None
    assert distance(found, every) < 3 * ANGLE


def with_equal(places: list[int], apart: float = 0.0) -> Tensor:
    sigma = spectrum("slow")
    sigma[places] = sigma[places[0]] * (1 - apart * torch.arange(len(places)).double())
    return sigma.sort(descending=True).values


CLUSTERS = {
    "two within": with_equal([3, 4]),
    "two at the end": with_equal([6, 7]),
    "two across the end": with_equal([7, 8]),
    "more than a block across the end": with_equal(list(range(2, 24))),
    "all": torch.ones(SIDE).double(),
    "two that nearly meet": with_equal([3, 4], apart=1e-12),
    "two that nearly meet across the end": with_equal([7, 8], apart=1e-12),
    "zeros across the end": spectrum("slow") * (torch.arange(SIDE) < 5),
    "zeros": torch.zeros(SIDE).double(),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_vectors_that_roundings_choose_are_left_to_the_solver_of_all(name: str) -> None:
    matrix, _ = matrix_of(CLUSTERS[name])
    assert leading_basis(matrix, 8) is None
    solved, every = solver.solve(matrix, 8), solver.singular_basis(matrix)
    assert solved.rank == min(8, every.rank)
    for side in ("u", "v", "sigma"):
        assert torch.equal(getattr(solved, side), getattr(every, side)[:8])
    assert solved.is_complete == (every.rank < 8)


@pytest.mark.parametrize("places", [[3, 4], [7, 8], [8, 9, 10]], ids=str)
def test_values_that_are_close_are_told_apart_as_long_as_float64_can(places: list[int]) -> None:
    matrix, right = matrix_of(with_equal(places, apart=1e-6))
    basis = leading_basis(matrix, 8)
    assert basis is not None
    assert distance(basis, right) < 3 * ANGLE


def proven(values: Tensor, vectors: Tensor, gram: Tensor) -> bool:
    return leading._are_proven(gram.clone(), vectors, values)


def test_a_proof_fails_where_anything_is_wrong() -> None:
    values = torch.arange(SIDE, 0, -1, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(SIDE, SIDE, dtype=torch.float64)).Q
    gram, vectors = (turn.mT * values) @ turn, turn[:5]
    gram = (gram + gram.mT) / 2
    assert proven(values[:6], vectors, gram)
    # Not yet grown to its value, the first of the others still bounds them.
    assert proven(torch.cat([values[:5], values[5:6] - 0.5]), vectors, gram)
    assert not proven(values[1:7], turn[1:6], gram)
    without_third = torch.tensor([0, 1, 3, 4, 5, 6])
    assert not proven(values[without_third], turn[without_third[:5]], gram)
    bent = vectors.clone()
    bent[2] += 1e-4 * turn[100]
    assert not proven(values[:6], bent / bent.norm(dim=1, keepdim=True), gram)
    assert not proven(torch.cat([values[:5], values[9:10] - 3]), vectors, gram)


@pytest.mark.parametrize("name", ["slow", "fast", "steep"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.91, 0.9998])
def test_a_share_of_the_energy_means_as_many_as_of_all(name: str, share: float) -> None:
    matrix, right = matrix_of(spectrum(name))
    expected = select_rank(right.sigma, share)
    basis = leading_basis(matrix, share)
    if expected <= SIDE / 16:
        assert basis is not None
    if expected > SIDE / 2:
        assert basis is None
    assert solver.solve(matrix, share).rank == expected
    if basis is not None:
        assert basis.rank == expected
        again = basis.leading(share, lambda: energy_of(matrix))
        assert again is not None and again.rank == expected
        assert basis.leading(1.0, lambda: energy_of(matrix)) is None
        assert basis.leading(expected + 1, lambda: energy_of(matrix)) is None


def test_few_of_small_weights_and_most_of_large_ones_are_not_looked_for_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("looked for leading triplets alone")

    monkeypatch.setattr(leading, "_gram", refuse)
    matrix, _ = matrix_of(spectrum("slow"))
    for rank in (1.0, SIDE // 2, SIDE, 2 * SIDE):
        assert leading_basis(matrix, rank) is None
    monkeypatch.setattr(leading, "_SMALLEST", SIDE + 1)
    assert leading_basis(matrix, 4) is None


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(threads: int) -> None:
    matrix, right = matrix_of(spectrum("slow"), (SIDE, 700))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        basis = leading_basis(matrix, 8)
    finally:
        torch.set_num_threads(before)
    assert basis is not None and distance(basis, right) < 3 * ANGLE
