"""The mathematics against dense float64, which shares no code with it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svfit_diffusion import spectral
from svfit_diffusion.errors import BasisError, ConfigError
from svfit_diffusion.layers import ShiftedProjection

# Relative to the largest entry of the oracle. Half the spacing of numbers next to 1 is 6e-8, 5e-4
# and 4e-3; a few roundings of operands and of sums add up to some five times that.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
EVERY_DTYPE = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)

LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "linear-wide": (nn.Linear, {"in_features": 24, "out_features": 10}, (3, 7, 24)),
    "linear-tall-unbiased": (
        nn.Linear,
        {"in_features": 9, "out_features": 20, "bias": False},
        (5, 9),
    ),
    "conv2d": (nn.Conv2d, {"in_channels": 3, "out_channels": 8, "kernel_size": 3}, (2, 3, 9, 8)),
    "conv2d-stride-padding": (
        nn.Conv2d,
        {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1},
        (2, 4, 9, 7),
    ),
    "conv2d-dilation-circular": (
        nn.Conv2d,
        {
            "in_channels": 3,
            "out_channels": 5,
            "kernel_size": 3,
            "dilation": 2,
            "padding": 2,
            "padding_mode": "circular",
        },
        (2, 3, 8, 8),
    ),
    "conv2d-same": (
        nn.Conv2d,
        {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "padding": "same"},
        (3, 8, 8),
    ),
    "conv2d-groups": (
        nn.Conv2d,
        {"in_channels": 6, "out_channels": 8, "kernel_size": 3, "groups": 2, "padding": 1},
        (2, 6, 5, 5),
    ),
    "conv2d-depthwise": (
        nn.Conv2d,
        {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6},
        (2, 6, 5, 5),
    ),
    "conv1d": (
        nn.Conv1d,
        {"in_channels": 5, "out_channels": 7, "kernel_size": 3, "stride": 2},
        (2, 5, 11),
    ),
    "conv3d": (
        nn.Conv3d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 2, "padding": 1},
        (1, 3, 4, 4, 4),
    ),
}
EVERY_LAYER = pytest.mark.parametrize("kind", LAYERS)
# A grouped convolution has no factored form: its flattened basis spans the groups.
EVERY_WAY = pytest.mark.parametrize(
    ("kind", "merged"),
    [(kind, True) for kind in LAYERS]
    + [(kind, False) for kind, (_, settings, _) in LAYERS.items() if "groups" not in settings],
    ids=lambda value: {True: "merged", False: "factored"}.get(value, value),
)


def make_layer(kind: str) -> tuple[Any, Tensor]:
    """A frozen layer of LAYERS and an input of it."""
    layer_type, settings, shape = LAYERS[kind]
    torch.manual_seed(len(kind))
    layer = layer_type(**settings).requires_grad_(False)
    return layer, torch.randn(shape)


def make_projection(layer: Any, rank: int, *, trainable: bool = True) -> ShiftedProjection:
    """The layer with a random shift of its own size, active."""
    basis = spectral.singular_basis(spectral.as_matrix(layer.weight.float()))
    projection = ShiftedProjection(layer, basis)
    values = torch.randn(rank, generator=torch.Generator().manual_seed(5)) * 0.3
    projection.add("a", nn.Parameter(values, requires_grad=trainable))
    projection.activate({"a": 1.0})
    return projection


def oracle(layer: Any, basis: spectral.Basis, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient in δ of the sum of its squares, by autograd through a dense float64 W'.

    The layer's own float64 copy computes, so that its stride and padding are PyTorch's.
    """
    double = copy.deepcopy(layer).double()
    shift = delta.detach().double().requires_grad_()
    rank = delta.numel()
    u, v = basis.u[:rank].double(), basis.v[:rank].double()
    dense = layer.weight.double() + (u.mT @ torch.diag(shift) @ v).reshape(layer.weight.shape)
    y = torch.func.functional_call(double, {"weight": dense}, (x.double(),))
    (gradient,) = torch.autograd.grad(y.square().sum(), shift)
    return y.detach(), gradient


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


@EVERY_DTYPE
@pytest.mark.parametrize("part", ["all", "some"])
@EVERY_WAY
def test_output_and_gradient_match_dense_float64(
    kind: str, part: str, merged: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make_layer(kind)
    layer, x = layer.to(dtype), x.to(dtype)
    rank = min(spectral.as_matrix(layer.weight).shape)
    projection = make_projection(layer, rank if part == "all" else rank // 2)
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: merged)
    delta = projection.deltas["a"]
    expected, expected_gradient = oracle(layer, projection.basis, x, delta)

    y = projection(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), delta)

    assert y.dtype == dtype
    assert gradient.dtype == torch.float32
    assert_close(y, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "factored"])
@pytest.mark.parametrize("kind", ["linear-wide", "conv2d-stride-padding", "conv1d"])
def test_gradient_of_the_input_passes_through_the_shift(
    kind: str, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make_layer(kind)
    projection = make_projection(layer, 2)
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: merged)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(projection(x).square().sum(), x)
    weight = {"weight": projection.effective_weight().detach()}
    y = torch.func.functional_call(layer, weight, (x,))
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    assert_close(gradient, expected.double(), torch.float32)


@EVERY_DTYPE
@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@EVERY_WAY
def test_zero_shift_is_the_layer_to_the_last_bit(
    kind: str,
    merged: bool,
    trainable: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = make_layer(kind)
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: merged)
    layer, x = layer.to(dtype), x.to(dtype)
    projection = make_projection(layer, 1, trainable=trainable)
    with torch.no_grad():
        projection.deltas["a"].zero_()
    projection.refresh()
    assert torch.equal(projection.effective_weight(), layer.weight)
    assert torch.equal(projection(x), layer(x))


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@EVERY_LAYER
def test_the_oracle_can_tell_a_shift_from_none(kind: str, trainable: bool) -> None:
    layer, x = make_layer(kind)
    projection = make_projection(layer, 1, trainable=trainable)
    expected, _ = oracle(layer, projection.basis, x, torch.zeros(1))
    difference = (projection(x).detach().double() - expected).abs().max()
    assert difference > 1e3 * TOLERANCE[torch.float32] * expected.abs().max()


def test_shift_has_the_singular_values_of_delta() -> None:
    layer, _ = make_layer("linear-wide")
    projection = make_projection(layer, 6)
    shift = spectral.shift_matrix(projection.basis, projection.deltas["a"]).detach()
    found = torch.linalg.svdvals(shift.double())[:6]
    expected = projection.deltas["a"].detach().double().abs().sort(descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_basis_rebuilds_its_matrix_in_descending_order() -> None:
    matrix = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    basis = spectral.singular_basis(matrix)
    assert basis.rank == 7
    assert (basis.sigma.diff() <= 0).all()
    assert_close(basis.u.mT @ torch.diag(basis.sigma) @ basis.v, matrix.double(), torch.float32)
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


@pytest.mark.parametrize("shape", [(12, 12), (12, 30), (30, 12)], ids=str)
@pytest.mark.parametrize("name", ["flat", "steep", "without rank", "nothing", "one"])
def test_a_basis_is_orthonormal_whatever_the_spectrum(name: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(side, 12, generator=generator, dtype=torch.float64)).Q
        for side in shape
    )
    matrix = ((left * spectrum(name)) @ right.mT).float()
    basis = spectral.singular_basis(matrix)
    u, v = basis.u.double(), basis.v.double()
    identity = torch.eye(12, dtype=torch.float64)
    # The smaller side's vectors are rounded to float32; the others come from a float32 product with
    # an error of some 1e-7 · σ₁/σ, σ ≥ σ₁/1000.
    near, far = (v, u) if shape[0] > shape[1] else (u, v)
    torch.testing.assert_close(near @ near.mT, identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(far @ far.mT, identity, rtol=0, atol=2e-4)
    rebuilt = (u.mT * basis.sigma.double()) @ v
    torch.testing.assert_close(rebuilt, matrix.double(), rtol=0, atol=2e-6)
    assert (basis.sigma.diff() <= 0).all()


@pytest.mark.parametrize("fraction", [1e-9, 0.25, 0.5, 0.9, 0.99, 0.999999, 1.0])
def test_energy_rank_is_the_smallest_that_reaches_the_fraction(fraction: float) -> None:
    sigma = torch.rand(40, generator=torch.Generator().manual_seed(1)).sort(descending=True).values
    squares = [float(value) ** 2 for value in sigma]
    smallest = next(
        r
        for r in range(1, len(squares) + 1)
        if math.fsum(squares[:r]) >= fraction * math.fsum(squares) or r == len(squares)
    )
    assert spectral.select_rank(sigma, fraction) == smallest


@pytest.mark.parametrize(
    ("sigma", "rank", "expected"),
    [
        ([3.0, 2.0, 1.0], 1, 1),
        ([3.0, 2.0, 1.0], 3, 3),
        # 9/14 = 0.643: reached at once, and not a hair above.
        ([3.0, 2.0, 1.0], 0.64, 1),
        ([3.0, 2.0, 1.0], 0.65, 2),
        # 1.0 means all, even those that carry nothing.
        ([3.0, 0.0, 0.0], 1.0, 3),
        ([3.0, 0.0, 0.0], 0.999, 1),
        ([0.0, 0.0], 0.5, 1),
        # Exactly reached: half of the energy of two equal values.
        ([1.0, 1.0], 0.5, 1),
        # Beyond what float32 sums resolve: 1e8 + 1 - 1e8.
        ([1e4, 1.0, 1.0], 1.0 - 1.5e-8, 2),
    ],
)
def test_select_rank_at_the_edges(sigma: list[float], rank: float, expected: int) -> None:
    assert spectral.select_rank(torch.tensor(sigma), rank) == expected


BAD_RANKS = [0, -1, 0.0, -0.5, 1.0001, 16.0, math.nan, math.inf, True, False, None, "16"]


@pytest.mark.parametrize("rank", [*BAD_RANKS, 4], ids=repr)
def test_select_rank_refuses(rank: Any) -> None:
    with pytest.raises(ConfigError, match="rank"):
        spectral.select_rank(torch.tensor([3.0, 2.0, 1.0]), rank)


@pytest.mark.parametrize(
    ("text", "rank"), [("16", 16), ("1", 1), ("1.0", 1.0), ("0.99", 0.99), ("1e-2", 0.01)]
)
def test_parse_rank_tells_counts_from_fractions(text: str, rank: float) -> None:
    parsed = spectral.parse_rank(text)
    assert parsed == rank
    assert type(parsed) is type(rank)


@pytest.mark.parametrize("text", ["", "full", "0", "-3", "0.0", "1.5", "16.0", "nan", "inf", "8,8"])
def test_parse_rank_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="rank"):
        spectral.parse_rank(text)


def test_pad_sum_adds_vectors_of_different_lengths() -> None:
    total = spectral.pad_sum(
        [(2.0, torch.tensor([1.0, 2.0])), (-1.0, torch.tensor([1.0, 1.0, 5.0, 7.0]))]
    )
    assert total.tolist() == [1.0, 3.0, -5.0, -7.0]


def test_pad_sum_of_one_vector_is_exact_and_differentiable() -> None:
    vector = torch.randn(5, requires_grad=True)
    total = spectral.pad_sum([(1.0, vector)])
    assert torch.equal(total, vector)
    total.sum().backward()
    assert vector.grad is not None
    assert vector.grad.tolist() == [1.0] * 5


def test_both_sides_of_a_wide_convolution_count() -> None:
    # 3×3, 320→320 at 32×32: factored takes 4.2e9 multiply-adds, merged 2.8e9.
    assert spectral.merging_is_cheaper(2048, 320, 2880, 320)
    # By its shorter side alone it would take 0.8e9.
    assert not spectral.merging_is_cheaper(2048, 320, 2880, 320, one_sided=True)


def test_merging_wins_with_tokens_and_loses_with_width() -> None:
    assert spectral.merging_is_cheaper(8192, 320, 320, 320)
    assert not spectral.merging_is_cheaper(128, 1280, 1280, 1280)
    # A small rank makes the factors cheap, however many tokens there are.
    assert not spectral.merging_is_cheaper(8192, 320, 320, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 65520.0, -1e6])
def test_weights_beyond_float16_have_no_basis(bad: float) -> None:
    weight = torch.ones(4, 4)
    weight[2, 1] = bad
    with pytest.raises(BasisError, match="NaN, infinity"):
        spectral.canonical_weight(weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_real_floats_have_no_basis(dtype: torch.dtype) -> None:
    with pytest.raises(BasisError, match="unquantised"):
        spectral.canonical_weight(torch.ones(4, 4).to(dtype))


def test_shift_is_not_rounded_by_autocast() -> None:
    layer, _ = make_layer("linear-wide")
    projection = make_projection(layer, 6)
    outside = projection.effective_weight()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = projection.effective_weight()
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 50, generator=generator).to(dtype)
    basis = spectral.singular_basis(weight)
    delta = torch.randn(40, generator=generator)
    shift = basis.u.double().mT @ torch.diag(delta.double()) @ basis.v.double()
    expected = (weight.double() + shift).to(dtype)
    # All but those few that float32 puts on the other side of a tie.
    same = spectral.shifted_weight(weight, basis, delta) == expected
    assert same.float().mean() > 0.995
