"""SVFit in diffusers' own methods for adapters, alone and beside a LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft_kinds import layers
from tiny import make_tiny_unet, run_unet
from torch import Tensor

from svfit_diffusion.peft import SVFitConfig

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ROUNDING = 2e-6
"""Of outputs of about 1, where a LoRA is added to weights and subtracted again."""


def svfit(rank: int = 16) -> SVFitConfig:
    return SVFitConfig(r=rank, target_modules=TARGETS, init_weights=False)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """With two adapters, `a` and `b`."""
    model = make_tiny_unet()
    torch.manual_seed(3)
    model.add_adapter(svfit(16), "a")
    model.add_adapter(svfit(8), "b")
    return model


def drawn(unet: Any, names: list[str], strengths: list[float]) -> Tensor:
    unet.set_adapters(names, strengths)
    return run_unet(unet)


def test_add_adapter_begins_at_the_base() -> None:
    unet = make_tiny_unet()
    base = run_unet(unet)
    unet.add_adapter(SVFitConfig(target_modules=TARGETS), "a")
    assert torch.equal(run_unet(unet), base)
    assert {name.split(".")[-2:][0] for name, p in unet.named_parameters() if p.requires_grad} == {
        "svfit_delta"
    }


def test_set_adapters_with_strengths(unet: Any) -> None:
    base = run_unet(make_tiny_unet())
    both = drawn(unet, ["a", "b"], [0.5, 2.0])
    for layer in layers(unet):
        layer.svfit_delta["a"].data *= 0.5
        layer.svfit_delta["a"].data[:8] += 2 * layer.svfit_delta["b"].data
    assert far(drawn(unet, ["a"], [1.0]), both) < ROUNDING
    assert far(both, base) > 0.01
    assert torch.equal(drawn(unet, ["a", "b"], [0.0, 0.0]), base)


def test_disable_adapters_is_the_base(unet: Any) -> None:
    before = run_unet(unet)
    unet.disable_adapters()
    assert torch.equal(run_unet(unet), run_unet(make_tiny_unet()))
    unet.enable_adapters()
    assert torch.equal(run_unet(unet), before)


def test_fuse_lora(unet: Any) -> None:
    own = [layer.weight for layer in layers(unet)]
    before = drawn(unet, ["a", "b"], [0.5, 2.0])
    unet.fuse_lora()
    assert far(run_unet(unet), before) < ROUNDING
    unet.unfuse_lora()
    assert all(layer.weight is weight for layer, weight in zip(layers(unet), own, strict=True))
    assert torch.equal(run_unet(unet), before)
    half = drawn(unet, ["a"], [0.5])
    unet.set_adapters(["a"], [1.0])
    unet.fuse_lora(lora_scale=0.5, safe_fusing=True)
    assert far(run_unet(unet), half) < ROUNDING


def test_delete_adapters(unet: Any) -> None:
    base = run_unet(make_tiny_unet())
    unet.delete_adapters("a")
    assert list(unet.peft_config) == ["b"]
    unet.delete_adapters(["b"])
    assert torch.equal(run_unet(unet), base)


def test_an_adapter_goes_to_another_unet(unet: Any) -> None:
    state = get_peft_model_state_dict(unet, adapter_name="b")
    assert len(state) == len(layers(unet)) and all("svfit_delta" in name for name in state)
    other = make_tiny_unet()
    other.add_adapter(unet.peft_config["b"], "mine")
    assert not set_peft_model_state_dict(other, state, "mine").unexpected_keys
    assert torch.equal(run_unet(other), drawn(unet, ["b"], [1.0]))


@pytest.mark.parametrize("first", ["svfit", "lora"])
def test_a_lora_beside_it(first: str) -> None:
    unet = make_tiny_unet()
    base = run_unet(unet)
    torch.manual_seed(4)
    configs = {"svfit": svfit(), "lora": lora()}
    for name in (first, *({*configs} - {first})):
        unet.add_adapter(configs[name], name)
    assert any(isinstance(module, LoraLayer) for module in unet.modules())
    alone = {name: drawn(unet, [name], [1.0]) for name in configs}
    both = drawn(unet, ["svfit", "lora"], [1.0, 0.7])
    assert min(far(both, other) for other in (base, *alone.values())) > 0.005
    unet.fuse_lora()
    assert far(run_unet(unet), both) < ROUNDING
    unet.unfuse_lora()
    assert far(run_unet(unet), both) < ROUNDING
    unet.delete_adapters("svfit")
    assert far(drawn(unet, ["lora"], [1.0]), alone["lora"]) < ROUNDING
    unet.unload_lora()
    assert not layers(unet) and far(run_unet(unet), base) < ROUNDING


def test_a_lora_fused_and_taken_out_under_a_merged_shift() -> None:
    """Each is subtracted again although the other has changed the weight meanwhile."""
    unet = make_tiny_unet()
    base = run_unet(unet)
    torch.manual_seed(4)
    unet.add_adapter(svfit(), "svfit")
    unet.add_adapter(lora(), "lora")
    unet.set_adapters(["svfit", "lora"], [1.0, 1.0])
    loras = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers(unet):
        layer.merge()
    for layer in loras:
        layer.merge()
    for layer in layers(unet):
        layer.unmerge()
    for layer in loras:
        layer.unmerge()
    unet.disable_adapters()
    assert far(run_unet(unet), base) < ROUNDING
