"""What PEFT's own suites ask of a method, by the names it has there, on every kind of layer.

The behaviours are those of PEFT's `tests/test_custom_models.py` and `tests/testing_common.py`; the
tests are ours, and stricter where SVFit is exact. `docs/peft.md` lists them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import peft_kinds
import pytest
import torch
from peft import (
    PeftModel,
    convert_to_lora,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft_kinds import ROWS, Kind, layers, train
from safetensors.torch import load_file, save_file

FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
"""Of outputs of about 1, where sums of some hundred products are added in another order."""

Behaviour = Callable[[Kind, Path], None]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(check: Behaviour) -> Behaviour:
    BEHAVIOURS[check.__name__] = check
    return check


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, **FLOAT32)


def differs(found: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(found, other, atol=1e-4, rtol=1e-4)


@behaviour
def test_attributes_parametrized(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    assert all(hasattr(model, name) for name in ("save_pretrained", "from_pretrained"))
    assert model.peft_type == "SVFIT" and model.active_peft_config.r == kind.config().r
    assert repr(layers(model)[0]).startswith("svfit.")
    layer = layers(model)[0]
    assert layer.weight is layer.get_base_layer().weight


@behaviour
def test_adapter_name(kind: Kind, folder: Path) -> None:
    model = kind.adapted("my-adapter")
    named = [name for name, p in model.named_parameters() if p.requires_grad]
    assert named and all("my-adapter" in name for name in named)


@behaviour
def test_only_params_are_updated(kind: Kind, folder: Path) -> None:
    model = kind.adapted(init_weights=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, kind.batch)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n in before if "svfit_delta" in n or ".modules_to_save." in n}


@behaviour
def test_training_custom_models(kind: Kind, folder: Path) -> None:
    model = kind.adapted().train()
    peft_kinds.output(model(kind.batch)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32 and parameter.grad.abs().sum() > 0


@behaviour
def test_gradient_is_that_of_the_weight(kind: Kind, folder: Path) -> None:
    model = kind.adapted().double()  # δ, too, so that only float16 vectors round
    peft_kinds.output(model(in_dtype(kind.batch, torch.float64))).square().sum().backward()
    found = [layer.svfit_delta["default"].grad for layer in layers(model)]
    dense = kind.adapted().double()
    weights = []
    for layer in layers(dense):
        layer.merge()
        weights.append(layer.get_base_layer().weight.requires_grad_())
    peft_kinds.output(dense(in_dtype(kind.batch, torch.float64))).square().sum().backward()
    for layer, weight, gradient in zip(layers(dense), weights, found, strict=True):
        for i in range(len(gradient)):
            unit = torch.zeros(len(gradient), dtype=torch.float64)
            unit[i] = 1
            direction = layer._output.change_of_weight(unit)
            wanted = (weight.grad * direction).sum()
            assert abs(gradient[i] - wanted) <= 2e-3 * weight.grad.norm() + 1e-6


def in_dtype(batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return batch.to(dtype) if batch.is_floating_point() else batch


@behaviour
def test_parameters_after_loading_model(kind: Kind, folder: Path) -> None:
    model = kind.adapted(init_weights=True)
    train(model, kind.batch)
    model.save_pretrained(folder)
    before, after = model.state_dict(), kind.loaded(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@behaviour
def test_save_pretrained(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    model.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(folder / "adapter_model.safetensors")
    saved = {name for name in tensors if not name.endswith(("2.weight", "2.bias"))}
    assert saved and all(name.endswith(".svfit_delta") for name in saved)
    assert saved == set(tensors) or "modules_to_save" in kind.settings
    assert torch.equal(kind.run(kind.loaded(folder)), kind.run(model))


@behaviour
def test_save_pretrained_selected_adapters(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "default2", "efaul")
    model.save_pretrained(folder, selected_adapters=["default2"])
    assert {path.name for path in folder.iterdir()} == {"README.md", "default2"}
    count = len(load_file(folder / "default2" / "adapter_model.safetensors"))
    assert count == len(get_peft_model_state_dict(model, adapter_name="default2"))
    model.set_adapter("default2")
    assert torch.equal(kind.run(kind.loaded(folder / "default2")), kind.run(model))


@behaviour
def test_from_pretrained_config_construction(kind: Kind, folder: Path) -> None:
    config = kind.config()
    get_peft_model(kind.build(), config).save_pretrained(folder)
    model = PeftModel.from_pretrained(kind.build(), folder, is_trainable=False, config=config)
    assert model.peft_config["default"] is config and config.inference_mode
    assert not any(parameter.requires_grad for parameter in model.parameters())


@behaviour
def test_load_multiple_adapters(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    model.save_pretrained(folder)
    loaded = kind.loaded(folder)
    for name in ("other", "yet-another"):
        assert loaded.load_adapter(folder, adapter_name=name).missing_keys == []
        loaded.set_adapter(name)
        assert torch.equal(kind.run(loaded), kind.run(model))


@behaviour
def test_load_model_low_cpu_mem_usage(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    model.save_pretrained(folder)
    loaded = kind.loaded(folder, low_cpu_mem_usage=True)
    loaded.load_adapter(folder, adapter_name="other", low_cpu_mem_usage=True)
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(kind.run(loaded), kind.run(model))
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    hollow = kind.build()
    inject_adapter_in_model(kind.config(), hollow, low_cpu_mem_usage=True)
    assert "meta" in {p.device.type for p in hollow.parameters()}


@behaviour
def test_inject_adapter_in_model(kind: Kind, folder: Path) -> None:
    saved = get_peft_model_state_dict(kind.adapted())
    state = {name.removeprefix("base_model.model."): value for name, value in saved.items()}
    for state_dict in (None, state):
        model = inject_adapter_in_model(kind.config(), kind.build(), state_dict=state_dict)
        result = set_peft_model_state_dict(model, state)
        assert not result.unexpected_keys
        assert torch.equal(kind.run(model), kind.run(kind.adapted()))


@behaviour
def test_disable_adapters(kind: Kind, folder: Path) -> None:
    base = kind.run(kind.build())
    model = kind.adapted(init_weights=True)
    assert torch.equal(kind.run(model), base)  # to the last bit, and so below
    train(model, kind.batch)
    after = kind.run(model)
    assert not torch.equal(after, base)
    with model.disable_adapter():
        assert torch.equal(kind.run(model), base)
    assert torch.equal(kind.run(model), after)


@behaviour
def test_disable_adapters_with_merging(kind: Kind, folder: Path) -> None:
    base, model = kind.run(kind.build()), kind.adapted()
    unmerged = kind.run(model)
    model.merge_adapter()
    with model.disable_adapter():
        disabled = kind.run(model)
    if "modules_to_save" not in kind.settings:
        assert torch.equal(disabled, base)
    assert torch.equal(kind.run(model), unmerged)


@behaviour
def test_merge_layers(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    own = [layer.weight for layer in layers(model)]
    unmerged = kind.run(model)
    assert differs(unmerged, kind.run(kind.build()))
    model.merge_adapter()
    assert close(kind.run(model), unmerged)
    model.unmerge_adapter()
    assert all(layer.weight is weight for layer, weight in zip(layers(model), own, strict=True))
    assert torch.equal(kind.run(model), unmerged)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert not hasattr(merged, "peft_config")
    assert close(kind.run(merged), unmerged)
    assert torch.equal(kind.run(pickle.loads(pickle.dumps(merged))), kind.run(merged))


@behaviour
def test_merge_layers_multi(kind: Kind, folder: Path) -> None:
    if "modules_to_save" in kind.settings:
        return  # PEFT takes one of those at a time
    model = kind.adapted("default", "adapter-2")
    alone = {}
    for name in ("default", "adapter-2"):
        model.set_adapter(name)
        alone[name] = kind.run(model)
    assert differs(alone["default"], alone["adapter-2"])
    for name, expected in alone.items():
        merged = copy.deepcopy(model).merge_and_unload(adapter_names=[name])
        assert close(kind.run(merged), expected)
    both = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "adapter-2"])
    model.base_model.set_adapter(["default", "adapter-2"])
    assert close(kind.run(both), kind.run(model))
    model.merge_adapter(["adapter-2"])
    model.merge_adapter(["default"])
    assert close(kind.run(model), kind.run(both))
    model.unmerge_adapter()
    assert all(not layer.merged for layer in layers(model))
    with model.disable_adapter():
        assert torch.equal(kind.run(model), kind.run(kind.build()))


@behaviour
def test_merge_layers_is_idempotent(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    model.merge_adapter()
    once = kind.run(model)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert torch.equal(kind.run(model), once)


@behaviour
def test_set_adapter_unmerges(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "other")
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("other")
    assert not any(layer.merged for layer in layers(model))


@behaviour
def test_safe_merge(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    before = kind.run(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert close(kind.run(merged), before)
    shared = {name: value.clone() for name, value in merged.state_dict().items()}
    save_file(shared, folder / "model.safetensors")


@behaviour
def test_merge_layers_nan(kind: Kind, folder: Path) -> None:
    for broken in (torch.nan, torch.inf):
        model = kind.adapted()
        for layer in layers(model):
            layer.svfit_delta["default"].data[0] = broken
            weight, before = layer.weight, layer.weight.clone()
            words = "NaNs detected in the merged weights. The adapter default seems to be broken"
            with pytest.raises(ValueError, match=words):
                layer.merge(safe_merge=True)
            assert layer.weight is weight and torch.equal(weight, before) and not layer.merged
        with pytest.raises(ValueError, match=words):
            model.merge_and_unload(safe_merge=True)


BEHAVIOURS["test_safe_merge_broken_adapter_leaves_base_layer_unchanged"] = test_merge_layers_nan


@behaviour
def test_merge_layers_fp16(kind: Kind, folder: Path) -> None:
    half = kind.adapted().to(torch.float16)
    before = kind.run(half, in_dtype(kind.batch, torch.float16))
    merged = half.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.float16}
    after = kind.run(merged, in_dtype(kind.batch, torch.float16))
    # W' is rounded to float16 once, its shift and outputs of several layers to 2⁻¹¹ each.
    assert torch.allclose(after.float(), before.float(), atol=2e-2, rtol=2e-2)


def in_half(kind: Kind, dtype: torch.dtype) -> None:
    base = kind.build().to(dtype)
    batch = in_dtype(kind.batch, dtype)
    expected = kind.run(base, batch)
    model = get_peft_model(kind.build().to(dtype), kind.config(init_weights=True))
    assert {layer.svfit_delta["default"].dtype for layer in layers(model)} == {torch.float32}
    if "modules_to_save" not in kind.settings:
        assert torch.equal(kind.run(model, batch), expected)
        train(model, batch, steps=1)
        assert torch.isfinite(kind.run(model, batch)).all()


@behaviour
def test_forward_float16(kind: Kind, folder: Path) -> None:
    in_half(kind, torch.float16)


@behaviour
def test_forward_bfloat16(kind: Kind, folder: Path) -> None:
    in_half(kind, torch.bfloat16)


@behaviour
def test_forward_output_finite(kind: Kind, folder: Path) -> None:
    assert torch.isfinite(kind.run(kind.adapted())).all()


@behaviour
def test_mixed_adapter_batches(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "other")
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = kind.run(model)
    with model.disable_adapter():
        alone["__base__"] = kind.run(model)
    names = ["other", "__base__", "default", "other"]
    mixed = kind.run(model, adapter_names=names)
    for row, name in enumerate(names):
        assert close(mixed[row], alone[name][row]), name
    if "modules_to_save" in kind.settings:
        return  # whose wrapper has words of its own for what follows
    with pytest.raises(ValueError, match=f"the number of inputs, but got 3 and {ROWS}"):
        kind.run(model, adapter_names=names[:3])
    with pytest.raises(ValueError, match=r"non-existing adapter.*: nobody"):
        kind.run(model, adapter_names=["nobody"] * ROWS)
    with pytest.raises(RuntimeError, match="in training mode"):
        kind.run(model.train(), adapter_names=names)
    model.eval().merge_adapter()
    with pytest.raises(RuntimeError, match="there are merged adapters"):
        kind.run(model, adapter_names=names)
    model.unmerge_adapter()
    assert torch.equal(kind.run(model, adapter_names=names), mixed)


@behaviour
def test_multiple_active_adapters_forward(kind: Kind, folder: Path) -> None:
    if "modules_to_save" in kind.settings:
        return  # PEFT takes one of those at a time
    model = kind.adapted("default", "other", "sum")
    for layer in layers(model):
        both = layer.svfit_delta["default"].data + layer.svfit_delta["other"].data
        layer.svfit_delta["sum"].data.copy_(both)
    model.base_model.set_adapter(["default", "other"])
    added = kind.run(model)
    model.set_adapter("sum")
    assert close(added, kind.run(model))


@behaviour
def test_active_adapter(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "other")
    assert model.active_adapter == "default" and model.active_adapters == ["default"]
    model.set_adapter("other")
    assert model.active_adapters == ["other"]


@behaviour
def test_requires_grad(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "other")

    def trained() -> set[str]:
        named = [name for name, p in model.named_parameters() if p.requires_grad]
        return {"other" if ".other" in name else "default" for name in named}

    assert trained() == {"default"}
    model.set_adapter("other")
    assert trained() == {"other"}
    model.set_requires_grad("other", requires_grad=False)
    assert not trained()
    model.set_adapter("default", inference_mode=True)
    assert not trained()


@behaviour
def test_delete_adapter(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "delete_me")
    model.set_adapter("delete_me")
    model.delete_adapter("delete_me")
    assert "delete_me" not in model.peft_config and model.active_adapters == ["default"]
    for layer in layers(model):
        assert "delete_me" not in layer.svfit_delta and "delete_me" not in layer.scaling
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert torch.equal(kind.run(model.base_model), kind.run(kind.build()))


@behaviour
def test_delete_inactive_adapter(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "delete_me")
    before = kind.run(model)
    model.delete_adapter("delete_me")
    assert model.active_adapters == ["default"] and torch.equal(kind.run(model), before)


@behaviour
def test_delete_unknown_adapter_raises(kind: Kind, folder: Path) -> None:
    with pytest.raises(ValueError, match="Adapter unknown-adapter does not exist"):
        kind.adapted().delete_adapter("unknown-adapter")


@behaviour
def test_unload_adapter(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    assert differs(kind.run(model), kind.run(kind.build()))
    unloaded = model.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    if "modules_to_save" not in kind.settings:  # which PEFT leaves in place
        assert torch.equal(kind.run(unloaded), kind.run(kind.build()))
    assert unloaded.state_dict().keys() == kind.build().state_dict().keys()


@behaviour
def test_weighted_combination_of_adapters(kind: Kind, folder: Path) -> None:
    model = kind.adapted("one", "two")
    model.add_adapter("short", kind.config(r=1, rank_pattern={}))
    parts, weights = ["one", "two", "short"], [-0.5, 0.8, 1.2]
    model.add_weighted_adapter(parts, weights, "sum")
    for layer in layers(model):
        wanted = sum(
            weight * layer.get_delta_weight(part)
            for part, weight in zip(parts, weights, strict=True)
        )
        assert close(layer.get_delta_weight("sum"), wanted)
    model.set_adapter("sum")
    assert torch.isfinite(kind.run(model)).all()
    with pytest.raises(ValueError, match="'nobody' is unknown"):
        model.add_weighted_adapter(["nobody"], [1.0], "new")
    with pytest.raises(ValueError, match="'sum' is taken"):
        model.add_weighted_adapter(["one"], [1.0], "sum")
    with pytest.raises(ValueError, match="expected a weight for each adapter and 'linear'"):
        model.add_weighted_adapter(["one"], [1.0], "new", combination_type="svd")


@behaviour
def test_set_scale(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    if "modules_to_save" in kind.settings:
        return
    base, full = (
        kind.run(kind.build()),
        [layer.get_delta_weight("default") for layer in layers(model)],
    )
    for layer in layers(model):
        layer.set_scale("default", 0.0)
        layer.set_scale("nobody", 3.0)
    assert torch.equal(kind.run(model), base)
    for layer in layers(model):
        layer.set_scale("default", 2.0)
        layer.scale_layer(0.25)
    for layer, weight in zip(layers(model), full, strict=True):
        assert close(layer.get_delta_weight("default"), 0.5 * weight)
    half = kind.run(model)
    model.merge_adapter()
    assert close(kind.run(model), half)
    model.unmerge_adapter()
    for layer in layers(model):
        layer.unscale_layer(0.25)
        assert layer.scaling == {"default": 2.0}
        layer.unscale_layer()
        assert layer.scaling == {"default": 1.0}


@behaviour
def test_copying(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    before = kind.run(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(kind.run(twin), before)
        for layer in layers(twin):
            layer.svfit_delta["default"].data.zero_()
        twin.merge_adapter()
        assert differs(kind.run(twin), before)
    assert torch.equal(kind.run(model), before)


@behaviour
def test_peft_model_device_map(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    model.save_pretrained(folder)
    assert torch.equal(kind.run(kind.loaded(folder, device_map={"": "cpu"})), kind.run(model))


@behaviour
def test_model_and_layer_status(kind: Kind, folder: Path) -> None:
    model = kind.adapted("default", "other")
    status = get_model_status(model)
    assert status.enabled and status.active_adapters == ["default"]
    assert status.available_adapters == ["default", "other"] and status.merged_adapters == []
    kinds = {layer.module_type for layer in get_layer_status(model)}
    assert "SVFitLayer" in kinds or "svfit" in str(kinds).lower()


@behaviour
def test_convert_to_lora(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    if not all(layer.supports_lora_conversion() for layer in layers(model)):
        return
    if "modules_to_save" in kind.settings:
        return
    before = kind.run(model)
    config, state = convert_to_lora(model, rank=1.0)
    lora = get_peft_model(kind.build(), config).eval()
    set_peft_model_state_dict(lora, state)
    assert close(kind.run(lora), before)


@behaviour
def test_exclude_modules(kind: Kind, folder: Path) -> None:
    model = kind.adapted()
    names = [n for n, module in model.named_modules() if module in layers(model)]
    left = names[-1].removeprefix("base_model.model.")
    if len(names) == 1:
        with pytest.raises(ValueError, match=r"No modules were|All modules were"):
            kind.adapted(exclude_modules=[left])
    else:
        assert len(layers(kind.adapted(exclude_modules=[left]))) == len(names) - 1
