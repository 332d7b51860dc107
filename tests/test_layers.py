"""One shifted layer: which weight it uses when, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from svfit_diffusion import spectral
from svfit_diffusion.layers import ShiftedProjection


def make_projection(**deltas: list[float]) -> ShiftedProjection:
    """A linear layer 6→5 with frozen adapters of these shifts, none active."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).requires_grad_(False)
    projection = ShiftedProjection(layer, spectral.singular_basis(layer.weight))
    for name, values in deltas.items():
        projection.add(name, nn.Parameter(torch.tensor(values), requires_grad=False))
    return projection


def dense(projection: ShiftedProjection, shift: list[float]) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(projection.layer.weight.double(), full_matrices=False)
    sigma[: len(shift)] += torch.tensor(shift)
    return (u * sigma) @ vh


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("weights", "shift"),
    [
        ({"a": 1.0}, [0.5, -0.25]),
        ({"a": -2.0}, [-1.0, 0.5]),
        ({"b": 1.0}, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ({"a": 2.0, "b": 0.5}, [1.5, 0.5, 1.5, 2.0, 2.5]),
        ({"a": 0.0, "b": 1.0}, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ({"a": 1.0, "not here": 1.0}, [0.5, -0.25]),
    ],
)
def test_active_adapters_add_up_times_their_weights(
    weights: dict[str, float], shift: list[float]
) -> None:
    projection = make_projection(a=[0.5, -0.25], b=[1.0, 2.0, 3.0, 4.0, 5.0])
    projection.activate(weights)
    expected = dense(projection, shift)
    torch.testing.assert_close(projection.effective_weight().double(), expected, rtol=0, atol=3e-6)
    y = X.double() @ expected.mT + projection.layer.bias.double()
    torch.testing.assert_close(projection(X).double(), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 0}, {"a": -0.0}, {"c": 1.0}])
def test_nothing_active_is_the_layer_itself(weights: dict[str, float]) -> None:
    projection = make_projection(a=[0.5])
    projection.activate({"a": 1.0})
    projection.activate(weights)
    assert projection.effective_weight() is projection.layer.weight
    assert torch.equal(projection(X), projection.layer(X))


def test_removing_the_active_adapter_and_activating_the_rest() -> None:
    projection = make_projection(a=[0.5], b=[1.0])
    projection.activate({"a": 1.0, "b": 1.0})
    projection.remove("a")
    projection.activate({"b": 1.0})
    expected = dense(projection, [1.0])
    torch.testing.assert_close(projection.effective_weight().double(), expected, rtol=0, atol=3e-6)


def test_a_frozen_shift_is_held_and_follows_refresh_only() -> None:
    projection = make_projection(a=[0.5])
    projection.activate({"a": 1.0})
    before = projection(X)
    projection.deltas["a"].fill_(2.0)
    assert torch.equal(projection(X), before)
    projection.refresh()
    assert not torch.equal(projection(X), before)


def test_a_live_shift_is_followed_at_once() -> None:
    projection = make_projection(a=[0.5])
    projection.deltas["a"].requires_grad_()
    projection.activate({"a": 1.0})
    before = projection(X)
    with torch.no_grad():
        projection.deltas["a"].fill_(2.0)
    assert not torch.equal(projection(X), before)


def test_a_live_and_a_frozen_adapter_mix() -> None:
    projection = make_projection(a=[0.5, 0.5], b=[1.0])
    projection.deltas["b"].requires_grad_()
    projection.activate({"a": 1.0, "b": 3.0})
    y = projection(X)
    torch.testing.assert_close(
        y.double(),
        X.double() @ dense(projection, [3.5, 0.5]).mT + projection.layer.bias.double(),
        rtol=0,
        atol=1e-5,
    )
    y.sum().backward()
    assert projection.deltas["a"].grad is None
    # ∂/∂δ of a weight of 3: thrice that of the shift itself.
    u, v = projection.basis.u[0], projection.basis.v[0]
    expected = 3 * (X @ v).sum() * u.sum()
    torch.testing.assert_close(projection.deltas["b"].grad, expected.reshape(1))


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "held"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_layer_that_changes_precision_is_followed(dtype: torch.dtype, trainable: bool) -> None:
    projection = make_projection(a=[0.5, -0.5])
    projection.deltas["a"].requires_grad_(trainable)
    projection.activate({"a": 1.0})
    expected = dense(projection, [0.5, -0.5])
    projection(X)
    projection.layer.to(dtype)
    y = projection(X.to(dtype))
    assert y.dtype == dtype
    expected = X.double() @ expected.mT + projection.layer.bias.double()
    torch.testing.assert_close(y.detach().double(), expected, rtol=0, atol=3e-2)
    assert projection.deltas["a"].dtype == torch.float32


def test_the_layer_keeps_its_parameters_and_gets_no_gradient() -> None:
    projection = make_projection(a=[0.5])
    weight, bias = projection.layer.weight, projection.layer.bias
    before = copy.deepcopy(projection.layer.state_dict())
    projection.deltas["a"].requires_grad_()
    projection.activate({"a": 1.0})
    projection(X).sum().backward()
    assert projection.layer.weight is weight
    assert projection.layer.bias is bias
    assert weight.grad is None
    assert all(torch.equal(before[k], v) for k, v in projection.layer.state_dict().items())
    assert list(projection.layer.modules()) == [projection.layer]


def test_an_empty_batch_passes() -> None:
    projection = make_projection(a=[0.5])
    projection.deltas["a"].requires_grad_()
    projection.activate({"a": 1.0})
    y = projection(torch.zeros(0, 6))
    assert y.shape == (0, 5)
    y.sum().backward()
    assert projection.deltas["a"].grad is not None
    assert projection.deltas["a"].grad.tolist() == [0.0]
