"""The mathematics for any matrix: every shape, precision, scale, repeated and zero σ, against
float64 that shares no code with it.

A float32 number is rounded by up to 6e-8 of itself, a float16 by 5e-4, a bfloat16 by 4e-3. Sums of
up to 40 products and a few roundings of operands make that some ten times as much, relative to the
largest number that is added: `CLOSE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from examples import share
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from svfit_diffusion.spectrum import one_sided as one_sided_module
from svfit_diffusion.spectrum.basis import Basis, canonical_weight
from svfit_diffusion.spectrum.linear import factored_linear, merged_linear
from svfit_diffusion.spectrum.one_sided import one_sided
from svfit_diffusion.spectrum.products import multiply, multiply_transposed
from svfit_diffusion.spectrum.rank import select_rank
from svfit_diffusion.spectrum.rows import factored_rows
from svfit_diffusion.spectrum.shift import pad_sum, shift_matrix, shifted_weight
from svfit_diffusion.spectrum.sketch import PROBES, distance, sketch
from svfit_diffusion.spectrum.solver import singular_basis

CLOSE = {torch.float32: 2e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SIDES = st.integers(1, 24)
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(list(CLOSE))
# Of a weight: from what float16 still tells from zero to what its sums still hold.
SCALES = st.sampled_from([2.0**-10, 1e-2, 1.0, 30.0, 1e3])
SPECTRA = ("random", "repeated", "steep", "deficient", "zero", "one")

Draw = Callable[[st.SearchStrategy[Any]], Any]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, rows: int, columns: int) -> Tensor:
    """Orthonormal rows, `(rows, columns)` float64; rows ≤ columns."""
    return torch.linalg.qr(normal(seed, columns, rows)).Q.mT


def spectrum(kind: str, length: int) -> Tensor:
    """Singular values of a kind, descending, the largest 1 unless all are zero."""
    i = torch.arange(length, dtype=torch.float64)
    return {
        "random": 1 - i / (2 * length),
        "repeated": (1 - (i // 3) / length),
        "steep": 10.0 ** (-4 * i / length),
        "deficient": (i < (length + 1) // 2).double(),
        "zero": torch.zeros(length, dtype=torch.float64),
        "one": (i == 0).double(),
    }[kind]


@st.composite
def matrices(draw: Draw) -> Tensor:
    """A matrix `(d_out, d_in)` float64 of a chosen spectrum."""
    d_out, d_in, seed = draw(SIDES), draw(SIDES), draw(SEEDS)
    short = min(d_out, d_in)
    sigma = spectrum(draw(st.sampled_from(SPECTRA)), short) * draw(SCALES)
    left, right = orthonormal(seed, short, d_out), orthonormal(seed + 1, short, d_in)
    return left.mT @ (sigma[:, None] * right)


@st.composite
def weights_with_shifts(draw: Draw) -> tuple[Tensor, Basis, Tensor]:
    """A weight in some precision, its basis, and a shift of some of its σ.

    Bases are defined on float16 roundings, so the weight is one.
    """
    weight = draw(matrices()).to(torch.float16).to(draw(DTYPES))
    basis = singular_basis(canonical_weight(weight))
    assume(basis.rank)
    delta = normal(draw(SEEDS), draw(st.integers(1, basis.rank))).float()
    delta *= draw(st.sampled_from([0.0, 1e-3, 1.0, 20.0]))
    return weight, basis, delta


def dense(basis: Basis, delta: Tensor) -> Tensor:
    """`U diag(δ) Vᵀ` in float64, one product after the other."""
    total = torch.zeros(basis.u.shape[1], basis.v.shape[1], dtype=torch.float64)
    for u, v, value in zip(basis.u.double(), basis.v.double(), delta.double(), strict=False):
        total += value * torch.outer(u, v)
    return total


def assert_close(found: Tensor, expected: Tensor, scale: float, dtype: torch.dtype) -> None:
    """Both alike up to what the precision rounds of numbers as large as `scale`."""
    assert found.shape == expected.shape
    error = float((found.double() - expected).abs().max()) if expected.numel() else 0.0
    assert error <= CLOSE[dtype] * scale, f"off by {error:.2e} where numbers are {scale:.2e}"


# The solver


@share(70)
@given(matrices())
@example(torch.zeros(3, 5, dtype=torch.float64))
@example(torch.eye(7, dtype=torch.float64))
@example(torch.ones(1, 1, dtype=torch.float64))
def test_a_basis_is_orthonormal_and_rebuilds_the_matrix(matrix: Tensor) -> None:
    half = matrix.to(torch.float16)
    basis, exact = singular_basis(half), half.double()
    expected = torch.linalg.svdvals(exact)
    largest = float(expected[0])
    # Vectors in float32, of which the smaller a σ is, the less a float32 product tells: up to
    # 1e-7 / 1e-3, the share of the largest σ from which on another way is taken.
    for vectors in (basis.u.double(), basis.v.double()):
        gram = vectors @ vectors.mT
        torch.testing.assert_close(gram, torch.eye(basis.rank).double(), rtol=0, atol=2e-4)
    assert_close(dense(basis, basis.sigma), exact, largest, torch.float32)
    assert_close(basis.sigma, expected[: basis.rank], largest, torch.float32)
    assert (basis.sigma.diff() <= 0).all()
    # What is left out is nothing but rounding.
    assert (expected[basis.rank :] <= 1e-6 * largest).all()
    assert (basis.sigma > 0).all()


@share(70)
@given(matrices(), SEEDS)
def test_a_basis_does_not_depend_on_layout_or_precision(matrix: Tensor, seed: int) -> None:
    half = matrix.to(torch.float16)
    first = singular_basis(half)
    for same in (half.float(), half.double(), half.mT.contiguous().mT):
        again = singular_basis(canonical_weight(same))
        assert torch.equal(again.sigma, first.sigma)
        shift = normal(seed, first.rank).float()
        if first.rank:
            assert torch.equal(shift_matrix(again, shift), shift_matrix(first, shift))


# Shifts


@share(70)
@given(weights_with_shifts())
def test_a_shift_is_u_diag_v(drawn: tuple[Tensor, Basis, Tensor]) -> None:
    _, basis, delta = drawn
    expected = dense(basis, delta)
    assert_close(shift_matrix(basis, delta), expected, float(delta.abs().max()), torch.float32)


@share(70)
@given(weights_with_shifts())
def test_a_shift_has_singular_values_of_its_own_size(drawn: tuple[Tensor, Basis, Tensor]) -> None:
    _, basis, delta = drawn
    found = torch.linalg.svdvals(shift_matrix(basis, delta).double())[: delta.numel()]
    expected = delta.double().abs().sort(descending=True).values
    # The vectors are orthonormal to 2e-4 only where σ is small.
    scale = float(delta.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-4 * scale + 1e-12)


@share(70)
@given(weights_with_shifts(), st.sampled_from([(), (1, 1), (1,)]))
def test_a_shifted_weight_is_the_sum_in_its_own_precision(
    drawn: tuple[Tensor, Basis, Tensor], kernel: tuple[int, ...]
) -> None:
    flat, basis, delta = drawn
    weight = flat.reshape(*flat.shape, *kernel)
    found = shifted_weight(weight, basis, delta)
    assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
    expected = flat.double() + dense(basis, delta)
    scale = float(flat.abs().max()) + float(delta.abs().max())
    assert_close(found.reshape(flat.shape), expected, scale, weight.dtype)
    assert torch.equal(shifted_weight(weight, basis, torch.zeros_like(delta)), weight)


@share(70)
@given(weights_with_shifts())
def test_the_gradient_of_a_shift_is_u_g_v(drawn: tuple[Tensor, Basis, Tensor]) -> None:
    weight, basis, delta = drawn
    gradient = normal(1, *weight.shape)
    delta.requires_grad_()
    shift_matrix(basis, delta).backward(gradient.float())
    u, v = basis.u[: delta.numel()].double(), basis.v[: delta.numel()].double()
    expected = torch.einsum("ri,ij,rj->r", u, gradient, v)
    assert delta.grad is not None
    assert_close(delta.grad, expected, float(gradient.norm()), torch.float32)


@share(70)
@given(
    st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 20), SEEDS), min_size=1, max_size=4),
)
def test_shifts_of_any_lengths_add_up(parts: list[tuple[float, int, int]]) -> None:
    vectors = [(weight, normal(seed, length).float()) for weight, length, seed in parts]
    expected = torch.zeros(max(length for _, length, _ in parts), dtype=torch.float64)
    for weight, vector in vectors:
        expected[: len(vector)] += weight * vector.double()
    assert_close(pad_sum(vectors), expected, 4 * 2 * 6, torch.float32)


# Layers


def faint_weight() -> tuple[Tensor, Basis, Tensor]:
    """A weight a thousand times smaller than the biases here, found by fuzzing."""
    weight = torch.tensor([[-9e-4, -4e-4]]).half().float()
    return weight, singular_basis(canonical_weight(weight)), torch.zeros(1)


@share(70)
@given(weights_with_shifts(), st.booleans(), st.booleans(), st.sampled_from([0.0, 1e-3, 0.1, 0.7]))
@example(faint_weight(), False, True, 0.0)
def test_a_layer_by_one_side_of_its_basis(
    drawn: tuple[Tensor, Basis, Tensor], merged: bool, biased: bool, tail: float
) -> None:
    """Both ways, output and gradients, wherever the tail begins."""
    weight, basis, delta = drawn
    dtype, (d_out, d_in) = weight.dtype, weight.shape
    half = basis.to(torch.device("cpu"), torch.float32)
    with mock.patch.multiple(one_sided_module, _ONE_SIDED_TAIL=tail, _SMALL=0):
        sided = one_sided(half)
    if sided.head and not merged and dtype == torch.float16:
        # What is divided by σ before W makes it small again goes beyond 65504 (found by fuzzing).
        # Weights are shifted by a share of σ; not by thousands of it.
        assume(float((delta / basis.sigma[: len(delta)]).abs().max()) < 1000)
    x = normal(2, 3, d_in).to(dtype).requires_grad_()
    bias = normal(3, d_out).to(dtype) if biased else None
    shift = delta.clone().requires_grad_()
    layer = merged_linear if merged else factored_linear
    y = layer(x, weight, bias, sided, shift)
    gradient = normal(4, *y.shape).to(dtype)
    y.backward(gradient)

    exact_x = x.detach().double().requires_grad_()
    exact_shift = delta.double().requires_grad_()
    u, v = basis.u[: len(delta)].double(), basis.v[: len(delta)].double()
    exact = weight.double() + u.mT @ torch.diag(exact_shift) @ v
    expected = torch.nn.functional.linear(exact_x, exact, None if bias is None else bias.double())
    expected.backward(gradient.double())

    # What is multiplied by W and divided by σ is rounded by as much more as σ is smaller than W.
    blow_up = 1 + (float(basis.sigma[0] / basis.sigma[len(delta) - 1]) if sided.head else 0.0)
    size = float(weight.double().norm()) + float(delta.norm())
    norm_x, norm_g = float(x.detach().double().norm()), float(gradient.double().norm())
    # By outputs, W x is what is left of W x + b, so what b is rounded by is divided by σ as well.
    hidden = 0.0
    if bias is not None and sided.head and d_out < d_in and not merged:
        hidden = float(bias.double().norm()) / float(basis.sigma[len(delta) - 1])
    assert y.dtype == dtype
    close_y = blow_up * (size + 1) * (norm_x + 3) + hidden * float(delta.norm())
    assert_close(y.detach(), expected.detach(), close_y, dtype)
    assert x.grad is not None and shift.grad is not None
    assert exact_x.grad is not None and exact_shift.grad is not None
    assert_close(x.grad, exact_x.grad, blow_up * size * norm_g, dtype)
    assert_close(shift.grad, exact_shift.grad, norm_g * (blow_up * norm_x + hidden), dtype)
    at_zero = layer(x, weight, bias, sided, torch.zeros_like(delta))
    assert torch.equal(at_zero, torch.nn.functional.linear(x, weight, bias))


@share(70)
@given(weights_with_shifts(), st.integers(1, 4))
def test_every_row_has_a_shift_of_its_own(drawn: tuple[Tensor, Basis, Tensor], rows: int) -> None:
    weight, basis, delta = drawn
    weight = weight.float()
    deltas = torch.stack([delta * (row - 1) for row in range(rows)])
    x = normal(5, rows, 3, weight.shape[1]).float()
    y = factored_rows(torch.nn.functional.linear, x, weight, None, basis, deltas)
    for row in range(rows):
        exact = weight.double() + dense(basis, deltas[row])
        size = float(weight.norm()) + float(deltas[row].norm())
        assert_close(y[row], x[row].double() @ exact.mT, size * float(x[row].norm()), torch.float32)


@share(70)
@given(SIDES, SIDES, SIDES, SEEDS, DTYPES)
def test_products(n: int, k: int, m: int, seed: int, dtype: torch.dtype) -> None:
    a, b = normal(seed, n, k).to(dtype), normal(seed + 1, k, m).to(dtype)
    expected = a.double() @ b.double()
    scale = float(a.double().norm()) * float(b.double().norm())
    assert_close(multiply(a, b), expected, scale, dtype)
    assert_close(multiply_transposed(a, b.mT.contiguous()), expected, scale, dtype)


# Ranks and sketches


@share(70)
@given(st.sampled_from(SPECTRA), st.integers(1, 40), st.floats(1e-6, 1), SCALES)
def test_a_rank_is_the_smallest_with_that_energy(
    kind: str, length: int, share: float, scale: float
) -> None:
    sigma = (spectrum(kind, length) * scale).float()
    rank = select_rank(sigma, share)
    assert 1 <= rank <= length
    squares = [float(value) ** 2 for value in sigma]
    wanted = share * math.fsum(squares)
    if share == 1:
        assert rank == length
    else:  # a sum in another order differs in its last place
        assert math.fsum(squares[:rank]) >= wanted * (1 - 1e-14)
        assert rank == 1 or math.fsum(squares[: rank - 1]) <= wanted * (1 + 1e-14)


@share(70)
@given(weights_with_shifts(), st.sampled_from([1e-3, 0.1, 1.0]))
def test_a_sketch_is_of_the_matrix_alone(
    drawn: tuple[Tensor, Basis, Tensor], change: float
) -> None:
    _, basis, delta = drawn
    own = sketch(basis, delta)
    assert own.shape == (PROBES,)
    norm = float(delta.norm())
    signs = torch.where(normal(6, basis.rank) < 0, -1.0, 1.0)[:, None].float()
    turned = Basis(basis.u * signs, basis.v * signs, basis.sigma)
    # Each of the numbers is at most √(d_out d_in) times the norm: 24 of float32's roundings.
    assert_close(sketch(turned, delta), own.double(), 24 * norm, torch.float32)
    other = Basis(basis.u, basis.v * (1 + change), basis.sigma)
    found = distance(sketch(other, delta), own, delta)
    expected = change * float(own.double().norm()) / PROBES**0.5
    assert (
        abs(found * norm - expected) <= CLOSE[torch.float32] * 24 * 2 * norm if norm else not found
    )
