"""Exports are what other programs load, and leave the base as it was."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline

from app.base_model import BaseModel
from app.exports import write_merged_pipeline
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter import Adapter, AdapterMetadata, write_adapter


@pytest.fixture
def adapter(tmp_path: Path, tiny_pipe: StableDiffusionPipeline) -> Path:
    deltas = {path: torch.full((4,), 0.5) for path in attention_layers(tiny_pipe.unet)}
    path = tmp_path / "rex.safetensors"
    write_adapter(path, Adapter({"unet": deltas}, AdapterMetadata()))
    return path


def test_a_merged_pipeline_draws_what_base_and_adapter_draw(
    saved_pipe: Path, adapter: Path, tmp_path: Path
) -> None:
    base = BaseModel(str(saved_pipe), "cpu")
    view = base.view()
    plain = tiny.run_pipeline(view)
    path = tmp_path / "exports" / "rex.zip"
    write_merged_pipeline(base, adapter, path)
    assert [file.name for file in path.parent.iterdir()] == ["rex.zip"]
    assert torch.equal(tiny.run_pipeline(view), plain)
    assert torch.equal(tiny.run_pipeline(base.view()), plain)

    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "merged")
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    view.load_svfit_weights(adapter)
    assert torch.equal(tiny.run_pipeline(merged), tiny.run_pipeline(view))
    assert not torch.equal(tiny.run_pipeline(view), plain)


def test_what_does_not_fit_leaves_no_file(saved_pipe: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    write_adapter(bad, Adapter({"unet": {"nowhere": torch.ones(1)}}, AdapterMetadata()))
    with pytest.raises(CheckpointError, match="nowhere"):
        write_merged_pipeline(BaseModel(str(saved_pipe), "cpu"), bad, tmp_path / "x" / "bad.zip")
    assert not (tmp_path / "x").exists()
