"""Adapters on whole models: exact at zero, exactly undone, and true to a dense oracle between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from one_model import ALL, CLOSE, EITHER, EVERY_MODEL, MODELS, Snapshot, dense_copy, put
from torch import Tensor

from svfit_diffusion import (
    AdapterNameError,
    ConfigError,
    StateError,
    SVFitConfig,
    TargetError,
    eject,
    inject,
    sigma_parameters,
)
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.targets import attention_layers, shiftable_layers
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import Basis


@EVERY_MODEL
@EITHER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_zero_shift_is_the_base_bit_for_bit(kind: str, trainable: bool, dtype: torch.dtype) -> None:
    make, config = MODELS[kind]
    model = make().to(dtype)
    base = tiny.run_model(model)
    assert torch.isfinite(base).all()
    put(model, config, trainable=trainable)
    assert torch.equal(tiny.run_model(model), base)


@EVERY_MODEL
def test_training_leaves_the_module_tree_and_ejecting_restores_all(kind: str) -> None:
    make, config = MODELS[kind]
    model = make()
    snapshot = Snapshot(model)
    injection = put(model, config, scale=0.5)
    assert not torch.equal(tiny.run_model(model), snapshot.output)
    read = snapshot._read()
    assert all(read[k] == snapshot.state[k] for k in ("state dict", "keys", "modules"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    eject(model)
    snapshot.check()
    eject(model)
    snapshot.check()
    assert Injection.find(model) is None
    assert injection.adapter_names == []


@EVERY_MODEL
def test_a_set_adapter_is_the_weights_and_nothing_else(kind: str) -> None:
    make, config = MODELS[kind]
    model = make()
    snapshot = Snapshot(model)
    injection = put(model, config, scale=0.3, trainable=False)
    shifted = tiny.run_model(model)
    assert not torch.equal(shifted, snapshot.output)
    read, before = snapshot._read(), snapshot.state
    assert all(read[k] == before[k] for k in ("keys", "modules", "hooks"))
    del read["attributes"][""]["_svfit_injection"]
    assert read["attributes"] == before["attributes"]
    weights, own = read["state dict"], before["state dict"]
    changed = {name for name in own if weights[name] != own[name]}
    assert changed == {f"{path}.weight" for path in injection.layers}
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(tiny.run_model(plain), shifted)
    eject(model)
    snapshot.check()
    assert Injection.find(model) is None


def test_every_change_of_a_set_adapter_brings_new_weights_and_none_the_own_ones() -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, scale=0.3, trainable=False)
    seen = {id(parameter): parameter for parameter in unet.parameters()}
    for weight in (0.5, 1.0):
        injection.set_active({"default": weight})
        new = [p for p in unet.parameters() if id(p) not in seen]
        assert len(new) == len(injection.layers)
        seen |= {id(parameter): parameter for parameter in new}
        for way in (
            lambda: injection.set_active({"default": 0.0}),
            lambda: injection.set_active({}),
        ):
            way()
            assert snapshot._read()["state dict"] == snapshot.state["state dict"]
        injection.set_active({"default": weight})
        injection.set_enabled(False)
        assert snapshot._read()["state dict"] == snapshot.state["state dict"]
        assert torch.equal(tiny.run_unet(unet), snapshot.output)
        injection.set_enabled(True)
        expected = dense_copy(tiny.make_tiny_unet(), injection, {"default": weight})
        torch.testing.assert_close(tiny.run_unet(unet), tiny.run_unet(expected), **CLOSE)


@EVERY_MODEL
@EITHER
def test_a_shift_is_the_dense_update(kind: str, trainable: bool) -> None:
    make, config = MODELS[kind]
    model = make()
    base = tiny.run_model(model)
    injection = put(model, config, scale=0.3, trainable=trainable)
    expected = tiny.run_model(dense_copy(make(), injection, {"default": 1.0}))
    actual = tiny.run_model(model)
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert (actual - base).abs().max() > 1e-2


@EITHER
def test_adapters_of_different_ranks_and_targets_add_up(trainable: bool) -> None:
    unet = tiny.make_tiny_unet()
    all_layers = SVFitConfig(rank=0.9, target="all")
    values = SVFitConfig(rank=30, target="to_v")
    put(unet, SVFitConfig(rank=3), "a", scale=1.0, trainable=trainable)
    put(unet, all_layers, "b", scale=0.2, seed=1, trainable=trainable)
    injection = put(unet, values, "c", scale=0.5, seed=2, trainable=trainable)
    assert injection.selection.weights == {"c": 1.0}
    for weights in ({"a": 1.0, "b": -0.5, "c": 2.0}, {"b": 1.0}, {"c": 0.3, "a": 0.1}, {}):
        injection.set_active(weights)
        expected = dense_copy(tiny.make_tiny_unet(), injection, weights)
        torch.testing.assert_close(tiny.run_unet(unet), tiny.run_unet(expected), **CLOSE)


@EITHER
def test_removing_adapters_one_by_one_ends_at_the_base(trainable: bool) -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, SVFitConfig(rank=4), "a", scale=1.0, trainable=trainable)
    only_a = tiny.run_unet(unet)
    put(unet, ALL, "b", scale=0.5, trainable=trainable)
    injection.set_active({"a": 1.0, "b": 1.0})
    injection.remove_adapter("b")
    assert torch.equal(tiny.run_unet(unet), only_a)
    assert set(injection.layers) == set(attention_layers(unet))
    # What only "b" shifted is a plain layer again.
    assert not any("forward" in vars(layer) for layer in shiftable_layers(unet).values())
    own = snapshot.state["state dict"]
    left = {
        path
        for path, layer in shiftable_layers(unet).items()
        if id(layer.weight) == own[f"{path}.weight"]
    }
    assert left >= set(shiftable_layers(unet)) - set(injection.layers)
    injection.remove_adapter("a")
    snapshot.check()


@EITHER
@pytest.mark.parametrize("weights", [{"default": 0.0}, {}])
@EVERY_MODEL
def test_weight_zero_is_the_base(kind: str, weights: dict[str, float], trainable: bool) -> None:
    make, config = MODELS[kind]
    model = make()
    base = tiny.run_model(model)
    injection = put(model, config, scale=0.5, trainable=trainable)
    injection.set_active(weights)
    assert torch.equal(tiny.run_model(model), base)
    injection.set_active({"default": 1.0})
    injection.set_enabled(False)
    assert torch.equal(tiny.run_model(model), base)
    injection.set_enabled(True)
    assert not torch.equal(tiny.run_model(model), base)


@EITHER
@EVERY_MODEL
def test_fused_adapters_are_in_the_weights_until_they_are_unfused(
    kind: str, trainable: bool
) -> None:
    make, config = MODELS[kind]
    model = make()
    snapshot = Snapshot(model)
    injection = put(model, config, scale=0.3, trainable=trainable)
    shifted = tiny.run_model(model)
    injection.fuse()
    assert list(model.state_dict()) == snapshot.state["keys"]
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(tiny.run_model(plain), tiny.run_model(model))
    torch.testing.assert_close(tiny.run_model(model), shifted, **CLOSE)
    injection.unfuse()
    assert torch.equal(tiny.run_model(model), shifted)
    injection.fuse(scale=-0.5)
    eject(model)
    snapshot.check()


def test_fusing_zero_is_the_base() -> None:
    unet = tiny.make_tiny_unet()
    base = copy.deepcopy(unet.state_dict())
    injection = put(unet, scale=0.5)
    injection.fuse(scale=0.0)
    assert all(torch.equal(base[name], tensor) for name, tensor in unet.state_dict().items())


FUSED_CALLS: dict[str, Callable[[Injection], object]] = {
    "set_active": lambda injection: injection.set_active({"default": 0.5}),
    "set_enabled": lambda injection: injection.set_enabled(False),
    "set_trainable": lambda injection: injection.set_trainable("default", False),
    "fuse": lambda injection: injection.fuse(),
    "remove_adapter": lambda injection: injection.remove_adapter("default"),
    "inject": lambda injection: inject(injection.model, None, "other", show_progress=False),
}


@pytest.mark.parametrize("call", FUSED_CALLS)
def test_changes_while_fused_are_refused(call: str) -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, scale=0.5)
    injection.fuse()
    fused = tiny.run_unet(unet)
    with pytest.raises(StateError, match="fuse"):
        FUSED_CALLS[call](injection)
    assert torch.equal(tiny.run_unet(unet), fused)
    assert injection.adapter_names == ["default"]
    eject(unet)
    snapshot.check()


def test_unfusing_and_fusing_out_of_order() -> None:
    injection = put(tiny.make_tiny_unet())
    with pytest.raises(StateError, match="not fused"):
        injection.unfuse()
    injection.set_active({})
    with pytest.raises(StateError, match="nothing to fuse"):
        injection.fuse()


@pytest.mark.parametrize(
    "settings",
    [{"target": ""}, {"target": ()}, {"target": ("to_q", "")}, {"rank": 0}, {"rank": 1.5}],
)
def test_bad_settings_are_refused_on_construction(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SVFitConfig(**settings)


@pytest.mark.parametrize("target", ["to_x", "o_q", "to_", "(", "*", "norm1", ("to_q", "to_x")])
def test_targets_that_match_nothing_are_refused(target: str | tuple[str, ...]) -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    with pytest.raises(TargetError, match="target"):
        inject(unet, SVFitConfig(target=target), show_progress=False)
    snapshot.check()


@pytest.mark.parametrize(
    ("failure", "already"),
    [
        *((failure, already) for failure in ("rank", "target", "svd") for already in (False, True)),
        ("name", True),
    ],
)
def test_a_failed_injection_leaves_the_model_as_it_was(
    failure: str, already: bool, monkeypatch: pytest.MonkeyPatch, empty_cache: Any
) -> None:
    unet = tiny.make_tiny_unet()
    if already:
        put(unet, SVFitConfig(rank=2, target="to_q"), "default", scale=0.3)
    snapshot = Snapshot(unet)
    config = SVFitConfig(
        rank=65 if failure == "rank" else 1.0, target="to_x" if failure == "target" else "all"
    )
    if failure == "svd":
        computed = []

        def fail_midway(matrix: Tensor) -> Basis:
            computed.append(matrix)
            if len(computed) > 5:
                raise torch.linalg.LinAlgError("did not converge")
            return original(matrix)

        original = solver.singular_basis
        monkeypatch.setattr(solver, "singular_basis", fail_midway)
    errors = {"rank": ConfigError, "target": TargetError, "name": AdapterNameError}
    with pytest.raises(errors.get(failure, torch.linalg.LinAlgError)):
        inject(unet, config, "default" if failure == "name" else "new", show_progress=False)
    snapshot.check()
    injection = Injection.find(unet)
    assert (injection.adapter_names if injection else []) == ["default"] * already


def test_unknown_names_are_refused_and_change_nothing() -> None:
    unet = tiny.make_tiny_unet()
    with pytest.raises(StateError, match="inject"):
        list(sigma_parameters(unet))
    injection = put(unet, scale=0.3)
    shifted = tiny.run_unet(unet)
    calls: list[Callable[[], object]] = [
        lambda: injection.set_active({"default": 0.5, "nobody": 1.0}),
        lambda: injection.remove_adapter("nobody"),
        lambda: injection.set_trainable("nobody", True),
        lambda: list(sigma_parameters(unet, "nobody")),
    ]
    for call in calls:
        with pytest.raises(AdapterNameError, match="nobody"):
            call()
        assert torch.equal(tiny.run_unet(unet), shifted)


def test_injecting_enables_shifts_that_were_disabled() -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, name="a")
    injection.set_enabled(False)
    put(unet, name="b", scale=0.3)
    assert not torch.equal(tiny.run_unet(unet), tiny.run_unet(tiny.make_tiny_unet()))


def test_ranks_by_energy_differ_per_layer() -> None:
    unet = tiny.make_tiny_unet()
    put(unet, SVFitConfig(rank=0.9))
    for path, delta in sigma_parameters(unet):
        sigma = torch.linalg.svdvals(unet.get_submodule(path).weight.half().double())
        energy = sigma.square().cumsum(0) / sigma.square().sum()
        assert energy[delta.numel() - 1] >= 0.9
        assert delta.numel() == 1 or energy[delta.numel() - 2] < 0.9
