"""One shifted layer: which weight it uses when, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from one_layer import OneLayer
from torch import Tensor, nn

from svfit_diffusion.spectrum import solver

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
EITHER = pytest.mark.parametrize("trainable", [True, False], ids=["live", "set"])


def make(*, trainable: tuple[str, ...] = (), **deltas: list[float]) -> OneLayer:
    """A linear layer 6→5 with adapters of these shifts, none active, frozen unless `trainable`."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).requires_grad_(False)
    adapted = OneLayer(layer, solver.singular_basis(layer.weight))
    for name, values in deltas.items():
        adapted.add(name, torch.tensor(values), trainable=name in trainable)
    return adapted


def dense(adapted: OneLayer, shift: list[float]) -> Tensor:
    u, sigma, vh = torch.linalg.svd(adapted.own.double(), full_matrices=False)
    sigma[: len(shift)] += torch.tensor(shift)
    return (u * sigma) @ vh


def expected(adapted: OneLayer, shift: list[float]) -> Tensor:
    """The layer's output for `X`, in float64."""
    return X.double() @ dense(adapted, shift).mT + adapted.layer.bias.double()


@EITHER
@pytest.mark.parametrize(
    ("weights", "shift"),
    [
        ({"a": 1.0}, [0.5, -0.25]),
        ({"a": -2.0}, [-1.0, 0.5]),
        ({"b": 1.0}, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ({"a": 2.0, "b": 0.5}, [1.5, 0.5, 1.5, 2.0, 2.5]),
        ({"a": 0.0, "b": 1.0}, [1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
)
def test_active_adapters_add_up_times_their_weights(
    weights: dict[str, float], shift: list[float], trainable: bool
) -> None:
    names = ("a", "b") if trainable else ()
    adapted = make(trainable=names, a=[0.5, -0.25], b=[1.0, 2.0, 3.0, 4.0, 5.0])
    adapted.activate(weights)
    assert (adapted.layer.weight is adapted.own) == trainable
    if not trainable:
        weight = adapted.layer.weight.double()
        torch.testing.assert_close(weight, dense(adapted, shift), rtol=0, atol=3e-6)
    y = adapted(X).detach()
    torch.testing.assert_close(y.double(), expected(adapted, shift), rtol=0, atol=1e-5)


def test_adapters_of_other_layers_do_not_count() -> None:
    shifted = make(a=[0.5, -0.25]).shifted
    assert [(w, d.tolist()) for w, d in shifted.active({"a": 1.0, "not here": 1.0})] == [
        (1.0, [0.5, -0.25])
    ]
    assert shifted.active({"not here": 1.0}) == []
    assert not shifted.is_live({"a": 1.0, "not here": 1.0})


@EITHER
@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 0}, {"a": -0.0}])
def test_nothing_active_is_the_layer_itself(weights: dict[str, float], trainable: bool) -> None:
    adapted = make(trainable=("a",) if trainable else (), a=[0.5])
    before, y = adapted.own.clone(), adapted(X)
    adapted.activate({"a": 1.0})
    assert not torch.equal(adapted(X), y)
    adapted.activate(weights)
    assert adapted.layer.weight is adapted.own
    assert torch.equal(adapted.own, before)
    assert "forward" not in vars(adapted.layer)
    assert torch.equal(adapted(X), y)


@EITHER
def test_removing_the_active_adapter_leaves_the_rest(trainable: bool) -> None:
    adapted = make(trainable=("a", "b") if trainable else (), a=[0.5], b=[1.0])
    adapted.activate({"a": 1.0, "b": 1.0})
    adapted.injection.remove_adapter("a")
    y = adapted(X).detach()
    torch.testing.assert_close(y.double(), expected(adapted, [1.0]), rtol=0, atol=1e-5)
    adapted.injection.remove_adapter("b")
    assert adapted.layer.weight is adapted.own
    assert "forward" not in vars(adapted.layer)


def test_a_set_shift_is_a_weight_and_follows_refresh_only() -> None:
    adapted = make(a=[0.5])
    adapted.activate({"a": 1.0})
    before = adapted(X)
    adapted.deltas["a"].fill_(2.0)
    assert torch.equal(adapted(X), before)
    adapted.refresh()
    torch.testing.assert_close(adapted(X).double(), expected(adapted, [2.0]), rtol=0, atol=1e-5)


def test_a_live_shift_is_followed_at_once() -> None:
    adapted = make(trainable=("a",), a=[0.5])
    adapted.activate({"a": 1.0})
    before = adapted(X)
    with torch.no_grad():
        adapted.deltas["a"].fill_(2.0)
    assert not torch.equal(adapted(X), before)


def test_a_live_and_a_frozen_adapter_mix() -> None:
    adapted = make(trainable=("b",), a=[0.5, 0.5], b=[1.0])
    adapted.activate({"a": 1.0, "b": 3.0})
    assert adapted.layer.weight is adapted.own
    y = adapted(X)
    torch.testing.assert_close(y.double(), expected(adapted, [3.5, 0.5]), rtol=0, atol=1e-5)
    y.sum().backward()
    assert adapted.deltas["a"].grad is None
    # ∂/∂δ of a weight of 3: thrice that of the shift itself.
    u, v = adapted.basis.u[0], adapted.basis.v[0]
    gradient = 3 * (X @ v).sum() * u.sum()
    torch.testing.assert_close(adapted.deltas["b"].grad, gradient.reshape(1))


@EITHER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_layer_that_changes_precision_is_followed(dtype: torch.dtype, trainable: bool) -> None:
    adapted = make(trainable=("a",) if trainable else (), a=[0.5, -0.5])
    before = adapted.own.detach().clone()
    wanted = expected(adapted, [0.5, -0.5])
    adapted.activate({"a": 1.0})
    adapted(X)
    adapted.layer.to(dtype)
    y = adapted(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.detach().double(), wanted, rtol=0, atol=3e-2)
    assert adapted.deltas["a"].dtype == torch.float32
    adapted.activate({})
    assert adapted.layer.weight is adapted.own
    assert torch.equal(adapted.own, before.to(dtype))


def test_training_keeps_the_layers_parameters_and_gives_them_no_gradient() -> None:
    adapted = make(trainable=("a",), a=[0.5])
    layer, bias = adapted.layer, adapted.layer.bias
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    adapted.activate({"a": 1.0})
    adapted(X).sum().backward()
    assert adapted.deltas["a"].grad is not None
    assert layer.weight is adapted.own
    assert layer.bias is bias
    assert layer.weight.grad is None
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert list(layer.modules()) == [layer]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_set_weight_is_a_parameter_like_the_layers_own(requires_grad: bool) -> None:
    adapted = make(a=[0.5])
    adapted.own.requires_grad_(requires_grad)
    adapted.activate({"a": 1.0})
    weight = adapted.layer.weight
    assert weight is not adapted.own
    assert isinstance(weight, nn.Parameter)
    assert weight.requires_grad == requires_grad
    assert (weight.shape, weight.dtype) == (adapted.own.shape, adapted.own.dtype)
    assert list(adapted.layer.state_dict()) == ["weight", "bias"]
    assert vars(adapted.layer).keys() == vars(nn.Linear(6, 5)).keys()


def test_an_empty_batch_passes() -> None:
    adapted = make(trainable=("a",), a=[0.5])
    adapted.activate({"a": 1.0})
    y = adapted(torch.zeros(0, 6))
    assert y.shape == (0, 5)
    y.sum().backward()
    assert adapted.deltas["a"].grad is not None
    assert adapted.deltas["a"].grad.tolist() == [0.0]
