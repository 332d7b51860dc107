"""Layers under PEFT that others have their hands on: hooks, trained weights, offloading, casts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from peft_kinds import KINDS, Kind, layers, output
from safetensors.torch import load_file, save_file
from torch import nn

KIND = KINDS["Linear"]
SOME = ["Linear", "wide Linear", "Conv2d", "Conv2d in groups", "Conv1D of GPT-2"]
EACH = pytest.mark.parametrize("kind", [KINDS[name] for name in SOME], ids=SOME)
FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}


@EACH
def test_hooks_of_a_layer_run(kind: Kind) -> None:
    model = kind.adapted()
    before, seen = kind.run(model), []
    for layer in layers(model):
        layer.get_base_layer().register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(kind.run(model), before, **FLOAT32)
    assert len(seen) == len(layers(model))


@EACH
def test_weights_that_are_trained_too_get_gradients(kind: Kind) -> None:
    model = kind.adapted()
    output(model(kind.batch)).square().sum().backward()
    alone = [layer.svfit_delta["default"].grad.clone() for layer in layers(model)]
    model.zero_grad()
    for layer in layers(model):
        layer.get_base_layer().requires_grad_()
    output(model(kind.batch)).square().sum().backward()
    for layer, expected in zip(layers(model), alone, strict=True):
        assert all(p.grad is not None for p in layer.get_base_layer().parameters())
        found = layer.svfit_delta["default"].grad
        # One side of a wide basis follows from the weight, the other is rounded to float16.
        assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_offloaded_weights() -> None:
    base: Any = KIND.build()
    model = get_peft_model(base, KIND.config())
    expected = KIND.run(model)
    for layer in layers(model):
        cpu_offload(layer.base_layer, execution_device=torch.device("cpu"))
        assert layer.weight.is_meta
    assert torch.allclose(KIND.run(model), expected, **FLOAT32)


def test_a_layer_of_another_class_runs_as_it_is() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    torch.manual_seed(0)
    base = nn.Sequential(Doubled(10, 6))
    model = get_peft_model(base, KIND.config(target_modules=["0"]))
    layer = layers(model)[0]
    change = nn.functional.linear(KIND.batch, layer.get_delta_weight("default"))
    expected = layer.base_layer(KIND.batch) + change
    assert torch.allclose(KIND.run(model), expected, **FLOAT32)


def test_shifts_are_float32_always(tmp_path: Path) -> None:
    half = KIND.build().to(torch.bfloat16)
    model = get_peft_model(half, KIND.config(), autocast_adapter_dtype=False)
    model.add_adapter("added", KIND.config(), autocast_adapter_dtype=False)
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    model.load_adapter(
        tmp_path, adapter_name="loaded", autocast_adapter_dtype=False, low_cpu_mem_usage=True
    )
    for layer in layers(model):
        assert {delta.dtype for delta in layer.svfit_delta.values()} == {torch.float32}
        assert layer.svfit_delta.keys() == {"default", "added", "loaded"}


def test_zeros_beyond_the_rank_of_a_weight_are_left_out(tmp_path: Path) -> None:
    model = KIND.adapted()
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.0.svfit_delta"
    tensors[name] = nn.functional.pad(tensors[name], (0, 3))
    save_file(tensors, file)
    loaded = KIND.loaded(tmp_path)
    assert len(layers(loaded)[0].svfit_delta["default"]) == 10
    assert torch.equal(KIND.run(loaded), KIND.run(model))


def test_autocast() -> None:
    model = KIND.adapted()
    expected = KIND.run(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = KIND.run(model)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(
        found.float(), expected, atol=0.05, rtol=0.05
    )  # 2⁻⁸ in each of two layers
