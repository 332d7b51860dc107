"""Triplets that are a matrix's, and triplets that look as if they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from svfit_diffusion.spectrum.accuracy import (
    TOLERANCE,
    check_belongs,
    check_numbers,
    missing_energy,
    orthonormality,
    residual,
)
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.solver import singular_basis


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def decaying(d_out: int, d_in: int, power: float) -> Tensor:
    """A float16 matrix with σᵢ = i^−power."""
    rank = min(d_out, d_in)
    left, _ = torch.linalg.qr(torch.randn(d_out, rank, generator=generator()))
    right, _ = torch.linalg.qr(torch.randn(d_in, rank, generator=generator()))
    return (left * torch.arange(1.0, rank + 1) ** -power @ right.mT).half()


def stored(matrix: Tensor) -> Basis:
    """The basis of a matrix as a file holds it."""
    return singular_basis(matrix).to(matrix.device, torch.float16)


MATRICES = {
    "flat": torch.randn(96, 96, generator=generator()).half(),
    "tall": torch.randn(128, 48, generator=generator()).half(),
    "wide": decaying(48, 128, 1.0),
    "steep": decaying(96, 96, 4.0),
    "small values": (torch.randn(24, 32, generator=generator()) * 1e-4).half(),
    "large values": (torch.randn(24, 32, generator=generator()) * 1e4).half(),
    "equal singular values": torch.eye(32).half(),
    "rank 1": torch.ones(24, 32).half(),
    "zero": torch.zeros(24, 32).half(),
    "one number": torch.tensor([[-3.0]]).half(),
}


@pytest.mark.parametrize("name", MATRICES)
def test_every_right_basis_is_well_within_the_bounds(name: str) -> None:
    matrix = MATRICES[name]
    basis = stored(matrix)
    check_numbers(basis)
    check_belongs(basis, matrix)
    # By the rounding of float16, 2⁻¹⁰ at most: half of the bound.
    assert residual(basis, matrix) <= TOLERANCE / 2
    assert orthonormality(basis) <= TOLERANCE / 2
    # σ in float32.
    assert missing_energy(basis, matrix) <= 2e-7


def test_figures_are_those_of_their_formulas() -> None:
    matrix = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    angle = torch.tensor(0.1)
    turned = torch.stack([angle.cos(), angle.sin()])[None]
    basis = Basis(torch.tensor([[1.0, 0.0]]), turned, torch.tensor([3.0]))
    # W v − σ u = (3 cos a − 3, 2 sin a), Wᵀu − σ v = (3 − 3 cos a, −3 sin a).
    expected = ((1 - angle.cos()) ** 2 + angle.sin() ** 2).sqrt()
    assert residual(basis, matrix) == pytest.approx(float(expected), rel=1e-5)
    assert missing_energy(basis, matrix) == pytest.approx(4 / 13, rel=1e-6)
    skew = Basis(torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([3.0, 2.0]))
    assert orthonormality(skew) == pytest.approx(0.6, rel=1e-6)


def other_vectors(basis: Basis) -> Basis:
    """The singular vectors of a neighbour: orthonormal, in order, and wrong."""
    matrix = MATRICES["flat"].roll(1, 0)
    return replace(stored(matrix), sigma=basis.sigma)


def two_turned(basis: Basis) -> Basis:
    """Two neighbours among the smallest turned into each other."""
    u, v = basis.u.float(), basis.v.float()
    for side in (u, v):
        side[-2:] = torch.stack([side[-2] + side[-1], side[-2] - side[-1]]) / 2**0.5
    return replace(basis, u=u.half(), v=v.half())


def one_sign(basis: Basis) -> Basis:
    u = basis.u.clone()
    u[3] *= -1
    return replace(basis, u=u)


def sides_exchanged(basis: Basis) -> Basis:
    return replace(basis, u=basis.v, v=basis.u)


def scaled(basis: Basis) -> Basis:
    return replace(basis, sigma=basis.sigma * 1.01)


def one_missing(basis: Basis) -> Basis:
    return Basis(basis.u[1:], basis.v[1:], basis.sigma[1:])


def none_left(basis: Basis) -> Basis:
    return basis.__class__(basis.u[:0], basis.v[:0], basis.sigma[:0])


def twice_the_first(basis: Basis) -> Basis:
    """Each triplet is right, and one is there twice instead of another."""
    order = torch.arange(basis.rank)
    order[1] = 0
    return Basis(basis.u[order], basis.v[order], basis.sigma[order])


def narrower(basis: Basis) -> Basis:
    return Basis(basis.u, basis.v[:, :-1], basis.sigma)


WRONG = [
    other_vectors,
    two_turned,
    one_sign,
    sides_exchanged,
    scaled,
    one_missing,
    none_left,
    twice_the_first,
    narrower,
]


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_what_is_orderly_and_not_the_weights_is_found_out(
    change: Callable[[Basis], Basis],
) -> None:
    matrix = MATRICES["flat"]
    basis = change(stored(matrix))
    check_numbers(basis)  # which cannot tell
    with pytest.raises(ValueError, match=r"expected at most|not of a weight of shape"):
        check_belongs(basis, matrix)


def test_equal_singular_values_need_vectors_of_their_own() -> None:
    identity = torch.eye(32).half()
    twice = identity.clone()
    twice[1] = twice[0]
    basis = Basis(twice, twice.clone(), torch.ones(32))
    assert residual(basis, identity) == missing_energy(basis, identity) == 0
    with pytest.raises(ValueError, match="departure from orthonormal vectors 1"):
        check_belongs(basis, identity)


def test_a_basis_of_a_zero_weight_has_no_triplets() -> None:
    basis, zero = stored(MATRICES["rank 1"]), MATRICES["zero"]
    assert missing_energy(basis, zero) > 0
    with pytest.raises(ValueError, match="residual of its vectors 1, expected at most"):
        check_belongs(basis, zero)


def with_value(basis: Basis, name: str, value: float) -> Basis:
    tensor = getattr(basis, name).clone()
    tensor.view(-1)[-1] = value
    return replace(basis, **{name: tensor})


@pytest.mark.parametrize(
    ("name", "value"),
    [("u", float("nan")), ("v", float("inf")), ("sigma", float("nan")), ("sigma", float("inf"))],
)
def test_what_is_not_finite_is_named(name: str, value: float) -> None:
    basis = with_value(stored(MATRICES["wide"]), name, value)
    with pytest.raises(ValueError, match="NaN or infinity"):
        check_numbers(basis)
    with pytest.raises(ValueError, match="expected at most"):
        check_belongs(basis, MATRICES["wide"])


@pytest.mark.parametrize("sigma", [[2.0, 3.0], [2.0, 0.0], [2.0, -1.0]], ids=str)
def test_singular_values_out_of_order_or_range_are_named(sigma: list[float]) -> None:
    basis = Basis(torch.eye(2).half(), torch.eye(2).half(), torch.tensor(sigma))
    with pytest.raises(ValueError, match="not positive and descending"):
        check_numbers(basis)


@pytest.mark.parametrize("value", [0.1, float("nan")])
def test_probes_of_other_vectors_are_named(value: float) -> None:
    basis = stored(MATRICES["wide"])
    with pytest.raises(ValueError, match="probes"):
        check_numbers(replace(basis, probes=torch.full((4, basis.rank), value)))


@pytest.mark.parametrize("name", ["flat", "tall", "wide", "small values", "large values"])
def test_leading_triplets_are_right_alone_and_not_with_one_missing(name: str) -> None:
    matrix = MATRICES[name]
    every = stored(matrix)
    right = every.truncated(6)
    assert not right.is_complete
    check_numbers(right)
    check_belongs(right, matrix)
    kept = torch.tensor([0, 1, 3, 4, 5, 6])
    gap = Basis(every.u[kept], every.v[kept], every.sigma[kept], is_complete=False)
    check_numbers(gap)
    with pytest.raises(ValueError, match="missing singular value"):
        check_belongs(gap, matrix)
    with pytest.raises(ValueError, match="share of the weight missing"):
        check_belongs(replace(right, is_complete=True), matrix)
    with pytest.raises(ValueError, match="residual"):
        check_belongs(replace(right, sigma=right.sigma * 1.01), matrix)
