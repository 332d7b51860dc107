"""Where memory is short, layers' own weights wait on the CPU, and are exchanged one by one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from merged import CLOSE, check_switching, load, make_adapter, put, tiny_pictures
from tiny import make_tiny_pipeline, make_tiny_unet, run_pipeline, run_unet
from torch import Tensor

from svfit_diffusion.adapters import applied, layers, room, weights
from svfit_diffusion.adapters.injection import Injection


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator with less than a tenth of its memory free."""
    for module in (room, weights):
        monkeypatch.setattr(module, "spare_bytes", lambda device: -1)


def own_weights(model: Any) -> dict[str, tuple[Any, Tensor]]:
    return {name: (p, p.detach().clone()) for name, p in model.named_parameters()}


def check_own(model: Any, own: dict[str, tuple[Any, Tensor]]) -> None:
    for name, parameter in model.named_parameters():
        assert parameter is own[name][0]
        assert torch.equal(parameter, own[name][1])


@pytest.mark.usefixtures("short_of_memory")
def test_own_weights_are_taken_to_the_cpu_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_tiny_unet()
    adapter = make_adapter({"unet": unet})
    own, base, moved, cpu = own_weights(unet), run_unet(unet), set(), Tensor.cpu

    def seen(tensor: Tensor) -> Tensor:
        moved.add(tensor.data_ptr())
        return cpu(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "cpu", seen)
        injection = put(unet, adapter)
    shifted = [own[f"{path}.weight"][0] for path in adapter.deltas["unet"]]
    assert {weight.data_ptr() for weight in shifted} <= moved
    assert not torch.equal(run_unet(unet), base)
    with monkeypatch.context() as patch:  # a strength more: those that wait there stay there
        patch.setattr(Tensor, "cpu", seen)
        moved.clear()
        injection.set_active({"a": 0.5})
    assert not moved & {weight.data_ptr() for weight in shifted}
    injection.eject()
    check_own(unet, own)
    assert torch.equal(run_unet(unet), base)


def watch_new_weights(unet: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most weights of its shifted layers' sizes that are in memory beside those in place,
    counted where one more has been made."""
    made: list[weakref.ref[Tensor]] = []
    most = 0
    exchange_for = applied.exchange_for

    def counted(*args: Any) -> Any:
        nonlocal most
        exchange = exchange_for(*args)
        made.append(weakref.ref(exchange.weight))
        in_place = {id(parameter) for parameter in unet.parameters()}
        alive = [new for ref in made if (new := ref()) is not None]
        most = max(most, sum(id(new) not in in_place for new in alive))
        return exchange

    monkeypatch.setattr(applied, "exchange_for", counted)
    return lambda: most


@pytest.mark.parametrize("is_short", [True, False])
def test_one_weight_more_is_in_memory_at_a_time(
    is_short: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_short:
        request.getfixturevalue("short_of_memory")
    unet = make_tiny_unet()
    adapter = make_adapter({"unet": unet})
    most = watch_new_weights(unet, monkeypatch)
    injection = put(unet, adapter)
    for strength in (0.5, 0, 1):
        injection.set_active({"a": strength})
    assert most() == (1 if is_short else len(adapter.deltas["unet"]))


@pytest.mark.usefixtures("short_of_memory")
def test_adapters_act_as_where_there_is_room() -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    adapted = run_pipeline(pipe)
    with pipe.svfit_adapters_per_prompt([{"a": 0.0}]):
        torch.testing.assert_close(run_pipeline(pipe), expected.base, **CLOSE)
    assert torch.equal(run_pipeline(pipe), adapted)
    check_switching(pipe, expected)


class Failing:
    """Weights put in place, until one that is not."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.left, self.error = number, error

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return weights.exchange_for(*args)


@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
@pytest.mark.parametrize("number", [1, 9, 20])
def test_what_fails_half_way_leaves_the_weights_as_they_were(
    number: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_tiny_pipeline()
    if fused:
        pipe.fuse_qkv_projections()
    own, base = own_weights(pipe.unet), run_pipeline(pipe)
    for setting in (0.0, 1.0):
        if not setting:
            load(pipe, activate=False)
        pipe.set_svfit_adapters("a", setting)
        before, picture = own_weights(pipe.unet), run_pipeline(pipe)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            failing = Failing(number, RuntimeError("out of memory"))
            patch.setattr(applied, "exchange_for", failing)
            pipe.set_svfit_adapters("a", 0.7)
        for name, parameter in pipe.unet.named_parameters():
            assert torch.equal(parameter, before[name][1])
        assert torch.equal(run_pipeline(pipe), picture)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), base)
    if not fused:  # whose copies are new ones
        check_own(pipe.unet, own)


def test_bases_are_kept_where_weights_lie_if_they_take_little_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, meta = make_tiny_unet(), torch.device("meta")
    put(unet, make_adapter({"unet": unet}))
    found = Injection.find(unet)
    assert found is not None
    shifted = list(found.layers.values())
    needed = sum(own.basis.nbytes for own in shifted)
    for spare, moves in ((8 * needed - 1, False), (8 * needed, True)):
        monkeypatch.setattr(room, "spare_bytes", lambda device, spare=spare: spare)
        layers.keep_bases_near([(own, meta) for own in shifted])
        assert all(own.basis.u.is_meta == moves for own in shifted)
