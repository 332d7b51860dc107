"""Linear maps with live shifts: what they keep, reuse and cast. Their numbers: test_spectral."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from svfit_diffusion import products, spectral
from svfit_diffusion.layers import ShiftedProjection

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def live(*, dtype: torch.dtype = torch.float32) -> ShiftedProjection:
    torch.manual_seed(0)
    layer = nn.Linear(16, 12).requires_grad_(False)
    basis = spectral.singular_basis(layer.weight)
    projection = ShiftedProjection(layer.to(dtype), basis)
    projection.add("a", nn.Parameter(torch.linspace(-0.3, 0.4, 12)))
    projection.activate({"a": 1.0})
    return projection


@pytest.fixture(params=[True, False], ids=["merged", "factored"])
def merged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: request.param)
    return bool(request.param)


def gradient(projection: ShiftedProjection, y: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y.float().square().sum(), projection.deltas["a"])[0]


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever `W'` is built."""
    builds: list[int] = []
    build = spectral.shifted_weight

    def counting(*arguments: Any) -> torch.Tensor:
        builds.append(1)
        return build(*arguments)

    monkeypatch.setattr(spectral, "shifted_weight", counting)
    return builds


@pytest.mark.parametrize("write", ["step", "data", "numpy"])
def test_a_merged_weight_serves_until_the_shift_changes(
    write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: True)
    builds = count_builds(monkeypatch)
    projection = live()
    delta = projection.deltas["a"]
    for _ in range(3):  # micro-batches of one optimizer step
        projection(X).sum().backward()
    assert len(builds) == 1
    before = projection(X)
    if write == "step":
        torch.optim.SGD([delta], lr=0.1).step()
    elif write == "data":  # as Prodigy does, unseen by autograd
        delta.data += 0.1
    else:  # as custom kernels do
        delta.detach().numpy()[:] += 0.1
    assert not torch.equal(projection(X), before)
    assert len(builds) == 2


def test_a_merged_weight_serves_a_checkpointed_block_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectral, "merging_is_cheaper", lambda *_: True)
    builds = count_builds(monkeypatch)
    projection = live()
    x = X.clone().requires_grad_()
    expected = gradient(projection, projection(x))
    y: Any = checkpoint(projection, x, use_reentrant=False)
    assert torch.equal(gradient(projection, y), expected)
    assert len(builds) == 1


@pytest.mark.usefixtures("merged")
def test_autocast_casts_as_it_does_for_a_linear_layer() -> None:
    projection = live()
    exact = projection(X)
    with torch.autocast("cpu", torch.bfloat16):
        y = projection(X)
    assert y.dtype == torch.bfloat16
    # bfloat16 holds eight bits; a few roundings of operands, products and sums.
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=3e-2)
    torch.testing.assert_close(
        gradient(projection, y), gradient(projection, exact), rtol=5e-2, atol=0.3
    )


def test_only_what_the_gradients_need_is_kept(merged: bool) -> None:
    projection = live()
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = X.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        projection(x)
    own = {id(projection.layer.weight), id(projection.basis.u), id(projection.basis.v)}
    new = {t.data_ptr(): t.numel() for t in kept if id(t) not in own}
    tokens = X[..., 0].numel()
    rank = projection.deltas["a"].numel()
    # Beside δ and views of the basis: x and W', or z = Vᵀx.
    extra = x.numel() + projection.layer.weight.numel() if merged else tokens * rank
    views = projection.basis.u.numel() + projection.basis.v.numel()
    assert sum(new.values()) <= extra + rank + views + projection.layer.weight.numel() * (
        not merged
    )


@pytest.mark.usefixtures("merged")
def test_an_input_without_gradient_gets_none() -> None:
    projection = live()
    y = projection(X)
    assert y.requires_grad
    y.sum().backward()
    assert projection.deltas["a"].grad is not None
    with torch.no_grad():
        assert not projection(X).requires_grad


def test_the_detour_through_convolutions_gives_the_same_gradients(
    merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for detour in (False, True):
        monkeypatch.setattr(products, "_WORTHWHILE", 0)
        monkeypatch.setattr(products, "_onednn_is_faster", lambda detour=detour: detour)
        projection = live()
        x = X.clone().requires_grad_()
        y = projection(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, projection.deltas["a"]))))
    for plain, through in zip(*results, strict=True):
        # Sums in another order: a few units in the last place of numbers up to 1e2.
        torch.testing.assert_close(through, plain, rtol=1e-5, atol=1e-4)
