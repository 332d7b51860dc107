"""The weights that a basis belongs to, however the base was loaded and whatever acts on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from svfit_diffusion import BasisError, inject
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.targets import attention_layers


def digests_of(model: nn.Module) -> dict[str, str]:
    return base_weights(model, attention_layers(model)).digests


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_bfloat16_load_takes_the_stored_weights(
    variant: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = tiny.make_tiny_unet()
    (unet.half() if variant else unet).save_pretrained(tmp_path, variant=variant)
    loaded = UNet2DConditionModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, variant=variant
    )
    assert loaded.dtype == torch.bfloat16
    assert digests_of(loaded) == digests_of(unet)
    assert not [r for r in caplog.records if r.name.startswith("svfit_diffusion")]


def test_bfloat16_text_encoders_take_the_stored_weights_too(saved_pipe: Path) -> None:
    stored = tiny.make_tiny_text_encoder()
    loaded = type(stored).from_pretrained(saved_pipe / "text_encoder", torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert digests_of(loaded) == digests_of(stored)


@pytest.mark.parametrize("cause", ["gone", "changed", "unknown"])
def test_bfloat16_without_its_files_takes_rounded_weights_and_says_so(
    cause: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if cause == "unknown":
        unet = tiny.make_tiny_unet().bfloat16()
    else:
        tiny.make_tiny_unet().save_pretrained(tmp_path / "unet")
        unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.bfloat16)
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    if cause == "gone":
        shutil.rmtree(tmp_path / "unet")
    if cause == "changed":
        with torch.no_grad():
            unet.get_submodule(path).weight.mul_(2)
    base = base_weights(unet, {path: unet.get_submodule(path)})
    assert torch.equal(base.matrix(path), unet.get_submodule(path).weight.half())
    assert "bfloat16" in caplog.text


@pytest.mark.parametrize("damage", ["nan", "int8", "meta"])
def test_unusable_weights_are_refused_and_the_model_left_alone(damage: str) -> None:
    unet = tiny.make_tiny_unet()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    if damage == "nan":
        layer.weight.data[0, 0] = torch.nan
    else:
        weight = layer.weight.to(
            **{"int8": {"dtype": torch.int8}, "meta": {"device": "meta"}}[damage]
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
    before = {name: id(tensor) for name, tensor in unet.named_parameters()}
    processors = unet.attn_processors
    with pytest.raises(BasisError, match=r"mid_block.*attn1\.to_q"):
        inject(unet, show_progress=False)
    assert {name: id(tensor) for name, tensor in unet.named_parameters()} == before
    assert unet.attn_processors == processors


def test_a_set_adapter_does_not_count() -> None:
    unet = tiny.make_tiny_unet()
    before = digests_of(unet)
    injection = inject(unet, trainable=False, show_progress=False)
    for _, delta in injection.sigma_parameters("default"):
        delta.data += 1
    injection.select(injection.selection)
    path = next(iter(before))
    assert not torch.equal(
        unet.get_submodule(path).weight, tiny.make_tiny_unet().get_submodule(path).weight
    )
    assert digests_of(unet) == before
