"""Adapters on models that are copied, compiled, or carry a LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from diffusers.utils import recurse_remove_peft_layers
from one_model import ALL, ATTENTION, CLOSE, EITHER, MODELS, Snapshot, dense_copy, put

from svfit_diffusion import StateError, SVFitConfig, eject, sigma_parameters
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.targets import select_targets


def add_lora(unet: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    unet.add_adapter(config, "lora")


def test_a_lora_loaded_during_training_is_an_error_that_names_the_way_out() -> None:
    unet = tiny.make_tiny_unet()
    put(unet, scale=0.3)
    add_lora(unet)
    with pytest.raises(StateError, match=r"to_q was replaced.*load a LoRA before"):
        tiny.run_unet(unet)
    eject(unet)
    expected = tiny.make_tiny_unet()
    add_lora(expected)
    assert torch.equal(tiny.run_unet(unet), tiny.run_unet(expected))


@pytest.mark.parametrize("kind", ["unet-attention", "unet-all", "text-attention", "text-all"])
def test_an_adapter_goes_on_top_of_a_lora_loaded_before(kind: str) -> None:
    peft = pytest.importorskip("peft")
    make, config = MODELS[kind]

    def with_lora() -> Any:
        model = make()
        torch.manual_seed(5)
        names = ["to_q", "to_out.0", "q_proj", "out_proj"]
        lora = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
        peft.inject_adapter_in_model(lora, model, "lora")
        return model.requires_grad_(False)

    model = with_lora()
    snapshot = Snapshot(model)
    without = make()
    assert not torch.equal(snapshot.output, tiny.run_model(without))
    injection = put(model, config)
    assert list(injection.layers) == list(select_targets(without, config.target))
    assert torch.equal(tiny.run_model(model), snapshot.output)
    eject(model)
    snapshot.check()
    for trainable in (True, False):
        injection = put(model, config, scale=0.3, trainable=trainable)
        expected = tiny.run_model(dense_copy(with_lora(), injection, {"default": 1.0}))
        # The random LoRA doubles the size of what passes through.
        torch.testing.assert_close(tiny.run_model(model), expected, rtol=0, atol=5e-5)
        eject(model)
        snapshot.check()
    # The LoRA may leave first.
    injection = put(model, config, scale=0.3)
    recurse_remove_peft_layers(model)
    expected = tiny.run_model(dense_copy(without, injection, {"default": 1.0}))
    torch.testing.assert_close(tiny.run_model(model), expected, **CLOSE)
    eject(model)
    assert torch.equal(tiny.run_model(model), tiny.run_model(without))


@EITHER
@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
def test_a_deep_copy_is_independent(config: SVFitConfig, trainable: bool) -> None:
    for make in (tiny.make_tiny_unet, tiny.make_tiny_text_encoder):
        model = make()
        base = tiny.run_model(model)
        put(model, config, scale=0.3, trainable=trainable)
        shifted = tiny.run_model(model)
        twin = copy.deepcopy(model)
        assert torch.equal(tiny.run_model(twin), shifted)
        for _, delta in sigma_parameters(twin):
            delta.data.mul_(-1)
        injection = Injection.find(twin)
        assert injection is not None
        injection.select(injection.selection)
        assert torch.equal(tiny.run_model(model), shifted)
        assert not torch.equal(tiny.run_model(twin), shifted)
        eject(twin)
        assert torch.equal(tiny.run_model(twin), base)
        assert torch.equal(tiny.run_model(model), shifted)


@EITHER
@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("small", [0, 2**16], ids=["one side", "both sides"])
def test_compiling_the_full_graph(
    config: SVFitConfig, trainable: bool, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svfit_diffusion.spectrum.one_sided._SMALL", small)
    torch._dynamo.reset()
    unet = tiny.make_one_block_unet()
    injection = put(unet, config, scale=0.3, trainable=trainable)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(tiny.run_unet(compiled), tiny.run_unet(unet), **CLOSE)
    # Changes of the shift are followed after compiling.
    for _, delta in injection.sigma_parameters("default"):
        delta.data.mul_(-1)
    injection.set_active({"default": 1.0})
    torch.testing.assert_close(tiny.run_unet(compiled), tiny.run_unet(unet), **CLOSE)
