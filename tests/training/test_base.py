"""Base models from folders, single files and files of a variant."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import tiny_pipelines
import torch
from safetensors.torch import save_file

from svfit_diffusion.adapters.base_weights import weights_of_models
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.base import BaseSource, load_base

# One tensor by which diffusers tells a single file's kind.
_MARKS = {
    "StableDiffusionPipeline": {"model.diffusion_model.x": torch.zeros(1)},
    "StableDiffusionXLPipeline": {
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1)
    },
    "FluxPipeline": {
        "double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1),
        "guidance_in.in_layer.bias": torch.zeros(1),
        "img_in.weight": torch.zeros(1, 64),
    },
}


def test_a_folder_is_loaded_in_float32_without_its_safety_checker(saved_pipe: Path) -> None:
    pipe = load_base(BaseSource(str(saved_pipe)))
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    assert pipe.safety_checker is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_in_half_precision_it_has_the_bases_of_a_whole_load(
    stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny.make_tiny_pipeline().to(stored).save_pretrained(tmp_path)
    source = BaseSource(str(tmp_path))
    whole, half = load_base(source), load_base(source, dtype)
    for name in ("unet", "text_encoder"):
        own, other = (
            weights_of_models({name: getattr(pipe, name)}, "all") for pipe in (half, whole)
        )
        assert own.digests == other.digests
    whole.to(dtype)
    for name in ("unet", "text_encoder", "vae"):
        own, other = (getattr(pipe, name).state_dict() for pipe in (half, whole))
        assert all(torch.equal(own[key], other[key]) for key in other)


def test_a_single_file_keeps_what_bfloat16_would_round_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "base.safetensors"
    save_file(_MARKS["FluxPipeline"], file)
    calls: list[Any] = []

    def load(path: str, **settings: Any) -> Any:
        calls.append(settings.get("torch_dtype"))
        return tiny.make_tiny_pipeline()

    monkeypatch.setattr(diffusers.FluxPipeline, "from_single_file", load)
    for dtype in (torch.bfloat16, torch.float16):
        load_base(BaseSource(str(file)), dtype)
    assert calls == [None, torch.float16]


def test_a_folder_of_another_family_is_loaded(tmp_path: Path) -> None:
    tiny_pipelines.build("flux").save_pretrained(tmp_path)
    assert type(load_base(BaseSource(str(tmp_path)))).__name__ == "FluxPipeline"


def test_files_of_a_variant_alone_are_named(tmp_path: Path) -> None:
    tiny.make_tiny_pipeline().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ConfigError, match="--variant=fp16"):
        load_base(BaseSource(str(tmp_path)))
    assert load_base(BaseSource(str(tmp_path), variant="fp16")).unet.dtype == torch.float32


@pytest.mark.parametrize("name", list(_MARKS))
@pytest.mark.parametrize("with_config", [True, False], ids=["config", "by its tensors"])
def test_a_single_file_goes_to_its_pipelines_class(
    name: str, with_config: bool, saved_pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, config = tmp_path / "base.safetensors", tmp_path / "config"
    save_file(_MARKS[name], file)
    shutil.copytree(saved_pipe, config)
    index = config / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", name))
    calls: list[Any] = []

    def load(path: str, **settings: Any) -> Any:
        calls.append((path, settings))
        return tiny.make_tiny_pipeline()

    monkeypatch.setattr(getattr(diffusers, name), "from_single_file", load)
    given = str(config) if with_config else None
    load_base(BaseSource(str(file), single_file_config=given))
    assert calls == [(str(file), {"config": given})]


def test_pickles_and_damaged_single_files_are_refused(tmp_path: Path) -> None:
    pickle, damaged = tmp_path / "base.ckpt", tmp_path / "base.safetensors"
    pickle.write_bytes(b"pickle")
    damaged.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="pickle"):
        load_base(BaseSource(str(pickle)))
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        load_base(BaseSource(str(damaged)))


@pytest.mark.parametrize("name", ["", "/nowhere", "no such model"])
def test_what_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name or "pretrained_model_name_or_path"):
        load_base(BaseSource(name))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "null", "[]", '{"a": ' + "1" * 5000 + "}", '{"_class_name": 3}'],
    ids=["deep", "null", "list", "digits", "class"],
)
def test_damaged_configurations_are_refused(
    file: str, text: str, saved_pipe: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(saved_pipe, tmp_path / "base", copy_function=os.symlink)
    (base / file).unlink()
    (base / file).write_text(text)
    with pytest.raises(ConfigError, match="cannot load base model"):
        load_base(BaseSource(str(base)))
