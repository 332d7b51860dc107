"""Linear maps with live shifts: what they keep, reuse and cast. Their numbers: test_shift."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_layer import LiveLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from svfit_diffusion.adapters import live
from svfit_diffusion.spectrum import linear, products, solver
from svfit_diffusion.spectrum.one_sided import one_sided
from svfit_diffusion.spectrum.shift import shift_matrix

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def make_live(*, d_out: int = 12, bias: bool = True, rank: int | None = None) -> LiveLayer:
    """A layer of 16 inputs, of a weight with small singular values and one that vanishes."""
    torch.manual_seed(0)
    layer = nn.Linear(16, d_out, bias=bias).requires_grad_(False)
    u, _, vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)
    sigma = torch.logspace(0, -4, min(16, d_out), dtype=torch.float64)
    sigma[-1] = 0
    layer.weight.copy_((u * sigma) @ vh)
    basis = solver.singular_basis(layer.weight)
    assert basis.rank == len(sigma) - 1
    return LiveLayer(layer, basis, torch.linspace(-0.3, 0.4, rank or basis.rank))


@pytest.fixture(params=[True, False], ids=["merged", "factored"])
def merged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(live, "merging_is_cheaper", lambda *_: request.param)
    return bool(request.param)


@pytest.fixture
def one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter side of a basis alone, for small matrices too."""
    monkeypatch.setattr("svfit_diffusion.spectrum.one_sided._SMALL", 0)


def basis_of(projection: LiveLayer) -> tuple[torch.Tensor, ...]:
    return projection.basis.u, projection.basis.v, projection.basis.sigma


def gradient(projection: LiveLayer, y: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y.float().square().sum(), projection.delta)[0]


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize("write", ["step", "data", "numpy"])
def test_every_call_follows_the_shift(write: str) -> None:
    projection = make_live()
    delta = projection.delta
    before = projection(X)
    before.sum().backward()
    if write == "step":
        torch.optim.SGD([delta], lr=0.1).step()
    elif write == "data":  # as Prodigy does, unseen by autograd
        delta.data += 0.1
    else:  # as custom kernels do
        delta.detach().numpy()[:] += 0.1
    assert not torch.equal(projection(X), before)


@pytest.mark.usefixtures("merged")
def test_a_checkpointed_block_gives_the_same_gradients() -> None:
    projection = make_live()
    x = X.clone().requires_grad_()
    expected = gradient(projection, projection(x))
    y: Any = checkpoint(projection, x, use_reentrant=False)
    assert torch.equal(gradient(projection, y), expected)


@pytest.mark.usefixtures("merged")
def test_autocast_casts_as_it_does_for_a_linear_layer() -> None:
    projection = make_live()
    exact = projection(X)
    with torch.autocast("cpu", torch.bfloat16):
        y = projection(X)
    assert y.dtype == torch.bfloat16
    # bfloat16 holds eight bits; a few roundings of operands, products and sums.
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=3e-2)
    torch.testing.assert_close(
        gradient(projection, y), gradient(projection, exact), rtol=5e-2, atol=0.3
    )


@pytest.mark.usefixtures("one_side")
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("d_out", [12, 16, 20])
def test_only_what_the_gradients_need_is_kept(
    merged: bool, d_out: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_WIDE", 0 if wide else 1024)
    projection = make_live(d_out=d_out)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = X.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        projection(x)
    frozen = {
        t.untyped_storage().data_ptr() for t in (projection.layer.weight, *basis_of(projection))
    }
    new = [t for t in kept if t.untyped_storage().data_ptr() not in frozen]
    own = 2 * projection.delta.numel()  # δ and 1/σ
    others = sum(t.numel() for t in new) - own
    # The input itself, or coefficients.
    if merged or (d_out >= 16 and not wide):
        assert any(t.data_ptr() == x.data_ptr() for t in new)
        assert others == x.numel()
    else:
        assert others == X[..., 0].numel() * len(projection.delta)


@pytest.mark.usefixtures("merged")
def test_an_input_without_gradient_gets_none() -> None:
    projection = make_live()
    y = projection(X)
    assert y.requires_grad
    y.sum().backward()
    assert projection.delta.grad is not None
    with torch.no_grad():
        assert not projection(X).requires_grad


def test_the_detour_through_convolutions_gives_the_same_gradients(
    merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for detour in (False, True):
        monkeypatch.setattr(products, "_WORTHWHILE", 0)
        monkeypatch.setattr(products, "_onednn_is_faster", lambda detour=detour: detour)
        projection = make_live()
        x = X.clone().requires_grad_()
        y = projection(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, projection.delta))))
    for plain, through in zip(*results, strict=True):
        # Sums in another order: a few units in the last place of numbers up to 1e2.
        torch.testing.assert_close(through, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("one_side", "merged")
@pytest.mark.parametrize("rank", [1, 5, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [12, 16, 20])
def test_one_side_of_the_basis_gives_the_exact_shift(
    d_out: int, bias: bool, rank: int | None
) -> None:
    projection = make_live(d_out=d_out, bias=bias, rank=rank)
    basis = one_sided(projection.basis)
    assert 1 < basis.head < projection.basis.rank - 1  # both kinds of triplets
    x = X.clone().requires_grad_()
    delta = projection.delta
    y = projection(x)
    actual = (y, *torch.autograd.grad(y.square().sum(), (x, delta)))

    exact_x, exact_delta = x.detach().double().requires_grad_(), delta.detach().double()
    exact_delta.requires_grad_()
    u, v = (t[: len(delta)].double() for t in basis_of(projection)[:2])
    weight = projection.layer.weight.double() + (u.mT * exact_delta) @ v
    exact_y = exact_x @ weight.mT + (projection.layer.bias.double() if bias else 0)
    exact = (exact_y, *torch.autograd.grad(exact_y.square().sum(), (exact_x, exact_delta)))
    for ours, oracle in zip(actual, exact, strict=True):
        # Rounding errors of float32 grow by σ_rms/σ, at most tenfold.
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_side", "merged")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("d_out", [12, 16, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_shift_the_layer_answers_to_the_last_bit(
    dtype: torch.dtype, d_out: int, bias: bool
) -> None:
    projection = make_live(d_out=d_out, bias=bias)
    projection.layer.to(dtype)
    projection.delta.data.zero_()
    x = X.to(dtype)
    assert torch.equal(projection(x), projection.layer(x))
    across = x.transpose(0, 1)  # which a linear layer computes in another way
    assert torch.equal(projection(across), projection.layer(across))


def test_rounding_one_side_costs_little_more_than_rounding_both() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 512).requires_grad_(False)
    exact = solver.singular_basis(layer.weight)
    delta = torch.randn(512)
    wanted = shift_matrix(exact, delta)
    projection = LiveLayer(layer, exact.to(exact.u.device, torch.float16), delta)
    assert one_sided(projection.basis).head > 450
    x = torch.eye(512)[:16]  # few, so that the shift is applied factored
    got = (projection(x) - layer(x)).mT
    error = (got - wanted[:, :16]).norm() / wanted[:, :16].norm()
    # 6e-4 is what was measured; rounding both sides makes 3e-4.
    assert error < 1e-3
