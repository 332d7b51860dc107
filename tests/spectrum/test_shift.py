"""Shifted weights and outputs against dense float64, which shares no code with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from one_layer import LiveLayer, OneLayer
from torch import Tensor, nn

from svfit_diffusion.adapters import live
from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import Basis, as_matrix
from svfit_diffusion.spectrum.shift import (
    merging_is_cheaper,
    pad_sum,
    shift_matrix,
    shifted_weight,
    shifted_weights,
)

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


def basis_of(layer: Any) -> Basis:
    return solver.singular_basis(as_matrix(layer.weight.float()))


def random_shift(rank: int) -> Tensor:
    return torch.randn(rank, generator=torch.Generator().manual_seed(5)) * 0.3


def make_live(layer: Any, rank: int) -> LiveLayer:
    """The layer with a random shift in training."""
    return LiveLayer(layer, basis_of(layer), random_shift(rank))


def put(layer: Any, shift: Tensor, *, trainable: bool) -> OneLayer:
    """The layer with a shift on it, in training or set."""
    adapted = OneLayer(layer, basis_of(layer))
    adapted.add("a", shift, trainable=trainable)
    adapted.activate({"a": 1.0})
    return adapted


def oracle(layer: Any, basis: Basis, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
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
    rank = min(as_matrix(layer.weight).shape)
    shifted = make_live(layer, rank if part == "all" else rank // 2)
    monkeypatch.setattr(live, "merging_is_cheaper", lambda *_: merged)
    expected, expected_gradient = oracle(layer, shifted.basis, x, shifted.delta)

    y = shifted(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), shifted.delta)

    assert y.dtype == dtype
    assert gradient.dtype == torch.float32
    assert_close(y, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)


@pytest.mark.parametrize("owners", ["aabb", "abbb"])
@pytest.mark.parametrize("smallest", [0, 2**16], ids=["one side", "both sides"])
@EVERY_WAY
def test_every_row_has_the_shift_of_its_owner(
    kind: str, merged: bool, smallest: int, owners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In equal parts or row by row; gradients go to each owner's shift and to each row."""
    layer, example = make_layer(kind)
    inside = 1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()
    x = torch.randn(4, *example.shape[inside:]).requires_grad_()
    monkeypatch.setattr(live, "merging_is_cheaper", lambda *_: merged)
    monkeypatch.setattr("svfit_diffusion.spectrum.one_sided._SMALL", smallest)
    shifted, rows = ShiftedLayer(layer, basis_of(layer)), RowOwners()
    shift = random_shift(shifted.basis.rank)
    for name, values in {"a": shift, "b": shift.flip(0)}.items():
        shifted.add(name, nn.Parameter(values))
    projection = live.LiveProjection(shifted, {"a": 1.0, "b": 1.0}, rows)

    with rows.given(owners):
        y = projection.forward(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *shifted.deltas.values()])

    for (name, delta), gradient in zip(shifted.deltas.items(), gradients[1:], strict=True):
        own = [row for row, owner in enumerate(owners) if owner == name]
        expected, expected_gradient = oracle(layer, shifted.basis, x.detach()[own], delta)
        assert_close(y[own], expected, torch.float32)
        assert_close(gradient, expected_gradient, torch.float32)
        weight = {"weight": shifted_weight(layer.weight, shifted.basis, delta.detach())}
        alone = torch.func.functional_call(layer, weight, (x,))[own]
        (expected_x,) = torch.autograd.grad(alone.square().sum(), x)
        assert_close(gradients[0][own], expected_x.double()[own], torch.float32)


@EVERY_DTYPE
@pytest.mark.parametrize("part", ["all", "some"])
@EVERY_LAYER
def test_a_set_shift_is_the_dense_weight(kind: str, part: str, dtype: torch.dtype) -> None:
    layer, x = make_layer(kind)
    layer, x = layer.to(dtype), x.to(dtype)
    rank = min(as_matrix(layer.weight).shape)
    shift = random_shift(rank if part == "all" else rank // 2)
    expected, _ = oracle(layer, basis_of(layer), x, shift)
    adapted = put(layer, shift, trainable=False)
    y = adapted(x)
    assert y.dtype == dtype
    assert not y.requires_grad
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "factored"])
@pytest.mark.parametrize("kind", ["linear-wide", "conv2d-stride-padding", "conv1d"])
def test_gradient_of_the_input_passes_through_the_shift(
    kind: str, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make_layer(kind)
    shifted = make_live(layer, 2)
    monkeypatch.setattr(live, "merging_is_cheaper", lambda *_: merged)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(shifted(x).square().sum(), x)
    weight = {"weight": shifted_weight(layer.weight, shifted.basis, shifted.delta.detach())}
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
    monkeypatch.setattr(live, "merging_is_cheaper", lambda *_: merged)
    layer, x = layer.to(dtype), x.to(dtype)
    expected, own = layer(x), layer.weight
    adapted = put(layer, torch.zeros(1), trainable=trainable)
    # A set shift of zeros is a weight of its own all the same.
    assert (layer.weight is own) == trainable
    assert torch.equal(layer.weight, own)
    assert torch.equal(adapted(x), expected)


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@EVERY_LAYER
def test_the_oracle_can_tell_a_shift_from_none(kind: str, trainable: bool) -> None:
    layer, x = make_layer(kind)
    expected, _ = oracle(layer, basis_of(layer), x, torch.zeros(1))
    adapted = put(layer, random_shift(1), trainable=trainable)
    difference = (adapted(x).detach().double() - expected).abs().max()
    assert difference > 1e3 * TOLERANCE[torch.float32] * expected.abs().max()


def test_shift_has_the_singular_values_of_delta() -> None:
    layer, _ = make_layer("linear-wide")
    shift = random_shift(6)
    found = torch.linalg.svdvals(shift_matrix(basis_of(layer), shift).double())[:6]
    expected = shift.double().abs().sort(descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_pad_sum_adds_vectors_of_different_lengths() -> None:
    total = pad_sum([(2.0, torch.tensor([1.0, 2.0])), (-1.0, torch.tensor([1.0, 1.0, 5.0, 7.0]))])
    assert total.tolist() == [1.0, 3.0, -5.0, -7.0]


def test_pad_sum_of_one_vector_is_exact_and_differentiable() -> None:
    vector = torch.randn(5, requires_grad=True)
    total = pad_sum([(1.0, vector)])
    assert torch.equal(total, vector)
    total.sum().backward()
    assert vector.grad is not None
    assert vector.grad.tolist() == [1.0] * 5


def test_both_sides_of_a_wide_convolution_count() -> None:
    # 3×3, 320→320 at 32×32: factored takes 4.2e9 multiply-adds, merged 2.8e9.
    assert merging_is_cheaper(2048, 320, 2880, 320)
    # By its shorter side alone it would take 0.8e9.
    assert not merging_is_cheaper(2048, 320, 2880, 320, one_sided=True)


def test_merging_wins_with_tokens_and_loses_with_width() -> None:
    assert merging_is_cheaper(8192, 320, 320, 320)
    assert not merging_is_cheaper(128, 1280, 1280, 1280)
    # A small rank makes the factors cheap, however many tokens there are.
    assert not merging_is_cheaper(8192, 320, 320, 4)


@EVERY_DTYPE
@pytest.mark.parametrize("kind", ["linear-wide", "linear-tall-unbiased"])
def test_several_weights_are_each_alone(kind: str, dtype: torch.dtype) -> None:
    layer, _ = make_layer(kind)
    weight, basis = layer.weight.detach().to(dtype), basis_of(layer)
    deltas = torch.stack([random_shift(6), torch.zeros(6), random_shift(6)])
    with torch.autocast("cpu", torch.bfloat16):
        together = shifted_weights(weight, basis, deltas)
    assert together.dtype == dtype and together.is_contiguous()
    assert torch.equal(together[1], weight.mT)
    for each, delta in zip(together, deltas, strict=True):
        alone = shifted_weight(weight, basis, delta).mT
        assert_close(each, alone.double(), dtype)


def test_shift_is_not_rounded_by_autocast() -> None:
    layer, _ = make_layer("linear-wide")
    basis, shift = basis_of(layer), random_shift(6)
    outside = shifted_weight(layer.weight, basis, shift)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = shifted_weight(layer.weight, basis, shift)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 50, generator=generator).to(dtype)
    basis = solver.singular_basis(weight)
    delta = torch.randn(40, generator=generator)
    shift = basis.u.double().mT @ torch.diag(delta.double()) @ basis.v.double()
    expected = (weight.double() + shift).to(dtype)
    # All but those few that float32 puts on the other side of a tie.
    same = shifted_weight(weight, basis, delta) == expected
    assert same.float().mean() > 0.995
