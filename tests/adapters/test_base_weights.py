"""The weights that a basis belongs to, however the base was loaded and whatever acts on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from svfit_diffusion import BasisError, inject
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.files import base_files


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


def test_a_part_of_a_pipeline_takes_the_stored_weights_too(saved_pipe: Path) -> None:
    """Which does not know that it is one: its config names the pipeline."""
    stored, loaded = (
        UNet2DConditionModel.from_pretrained(saved_pipe, subfolder="unet", torch_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert digests_of(loaded) == digests_of(stored)


def test_a_model_that_was_published_in_bfloat16_has_nothing_better(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet = tiny.make_tiny_unet().bfloat16()
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert digests_of(loaded) == digests_of(unet.float())
    assert not [r for r in caplog.records if r.name.startswith("svfit_diffusion")]


def test_weights_in_several_files_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny.make_tiny_unet()
    unet.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    read: list[str] = []
    opened = base_files.safe_open

    class Watched:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._file = opened(*args, **kwargs)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self._file.keys())

        def get_tensor(self, key: str) -> Any:
            read.append(key)
            return self._file.get_tensor(key)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the whole model was loaded again")

    monkeypatch.setattr(base_files, "safe_open", Watched)
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", refuse)
    layers = dict(list(attention_layers(loaded).items())[:3])
    found = base_weights(loaded, layers).digests
    assert found == {path: digests_of(unet)[path] for path in layers}
    assert sorted(read) == sorted(f"{path}.weight" for path in layers)


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("encoder.0.q.weight", ["text_model.encoder.0.q.weight", "other"], 0),
        ("text_model.encoder.0.q.weight", ["encoder.0.q.weight", "encoder.1.q.weight"], 0),
        ("model.language.0.q.weight", ["model.0.q.weight", "model.1.q.weight"], 0),
        ("0.q.weight", ["up.0.q.weight", "down.0.q.weight"], None),
        ("0.q.weight", ["10.q.weight"], 0),  # which its values must show to be right
        ("q.weight", ["up.k.weight"], None),
        ("q.weight", [], None),
    ],
)
def test_names_that_libraries_change_are_found(
    name: str, keys: list[str], expected: int | None
) -> None:
    assert base_files._key(name, keys) == (None if expected is None else keys[expected])


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
