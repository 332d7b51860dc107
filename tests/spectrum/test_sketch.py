"""Sketches: what they are, what they do not depend on, and what they find."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import shift_matrix
from svfit_diffusion.spectrum.sketch import PROBES, TOLERANCE, _signs, distance, probes_of, sketch
from svfit_diffusion.spectrum.solver import singular_basis


def make_basis(d_out: int = 24, d_in: int = 40, seed: int = 0) -> Basis:
    return singular_basis(torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)))


def make_shift(rank: int) -> Tensor:
    return torch.randn(rank, generator=torch.Generator().manual_seed(9))


def turned(basis: Basis, first: int, angle: float) -> Basis:
    """A basis with two neighbouring triplets turned into each other."""
    u, v = basis.u.clone(), basis.v.clone()
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    u[first : first + 2] = turn @ u[first : first + 2]
    v[first : first + 2] = turn @ v[first : first + 2]
    return Basis(u, v, basis.sigma)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (7, 9), (1, 3)], ids=str)
def test_a_sketch_is_a_few_products_with_the_matrix(shape: tuple[int, int]) -> None:
    basis = make_basis(*shape)
    delta = make_shift(basis.rank)
    dense = shift_matrix(basis, delta).double()
    left, right = _signs("left", shape[0]).double(), _signs("right", shape[1]).double()
    expected = torch.einsum("ki,ij,kj->k", left, dense, right)
    found = sketch(basis, delta)
    assert found.shape == (PROBES,)
    assert found.dtype == torch.float32
    # Float32 sums of some 1000 terms of order 1.
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_signs_are_the_same_for_ever() -> None:
    # They are part of the file format: another machine, another version.
    assert _signs("left", 12)[0].tolist() == [-1, 1, -1, -1, 1, 1, 1, -1, 1, -1, -1, 1]
    long, short = _signs("right", 1000), _signs("right", 13)
    assert torch.equal(long[:, :13], short)
    assert set(long.flatten().tolist()) == {-1.0, 1.0}
    assert long.mean(1).abs().max() < 0.1
    assert (long @ long.mT / 1000 - torch.eye(PROBES)).abs().max() < 0.1
    assert not torch.equal(long, _signs("left", 1000))


def test_a_sketch_takes_the_leading_triplets_of_a_longer_basis() -> None:
    basis = make_basis()
    delta = make_shift(5)
    # Float32: kernels of some processors sum other shapes in another order.
    torch.testing.assert_close(
        sketch(basis, delta), sketch(basis.truncated(5), delta), rtol=1e-5, atol=1e-5
    )
    half = basis.to(torch.device("cpu"), torch.float16)
    assert distance(sketch(half, delta), sketch(basis, delta), delta) < TOLERANCE / 10


def test_probes_at_hand_are_used_as_they_are() -> None:
    basis = make_basis()
    delta = make_shift(6)
    held = Basis(basis.u, basis.v, basis.sigma, probes_of(basis))
    assert torch.equal(sketch(held, delta), sketch(basis, delta))
    assert torch.equal(sketch(held.truncated(6), delta), sketch(basis, delta))


def test_signs_of_pairs_do_not_matter() -> None:
    basis = make_basis()
    delta = make_shift(basis.rank)
    flips = torch.where(torch.arange(basis.rank) % 3 == 0, -1.0, 1.0)[:, None]
    flipped = Basis(basis.u * flips, basis.v * flips, basis.sigma)
    # Float32 sums in another order.
    torch.testing.assert_close(sketch(flipped, delta), sketch(basis, delta), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("angle", [0.1, math.pi / 4, math.pi / 2])
def test_distances_estimate_those_of_matrices(angle: float) -> None:
    shares = []
    for seed in range(40):
        basis = make_basis(seed=seed)
        delta = make_shift(basis.rank)
        other = turned(basis, 3, angle)
        exact = (shift_matrix(other, delta) - shift_matrix(basis, delta)).norm() / delta.norm()
        found = distance(sketch(other, delta), sketch(basis, delta), delta)
        shares.append(found / float(exact))
    # Squares of four numbers, over 40 matrices: within 30 %, four standard deviations.
    assert 0.7 < torch.tensor(shares).square().mean().sqrt() < 1.3
    assert min(shares) > 0.01


def test_no_shift_is_no_distance() -> None:
    basis, other = make_basis(seed=0), make_basis(seed=1)
    zero = torch.zeros(basis.rank)
    assert distance(sketch(other, zero), sketch(basis, zero), zero) == 0.0
    delta = make_shift(basis.rank)
    assert distance(sketch(basis, delta), sketch(basis, delta), delta) == 0.0
    # Sketches of something else beside a shift of zero are told apart all the same.
    assert distance(sketch(basis, delta), sketch(basis, zero), zero) > 0.1


def test_another_matrix_is_far_off() -> None:
    delta = make_shift(24)
    found = [
        distance(sketch(make_basis(seed=seed), delta), sketch(make_basis(), delta), delta)
        for seed in range(1, 20)
    ]
    assert min(found) > 20 * TOLERANCE
