"""An app whose disk is full: what was learned is kept, and no path is told to visitors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import full_disk
import pytest
from PIL import Image
from test_app_training_jobs import PHOTOS, finished, settings

from app.base_model import BaseModel
from app.library import AdapterLibrary
from app.pages.messages import sentence
from app.picture import PictureSettings
from app.png_metadata import save_picture
from app.settings import Limits
from app.training_jobs import TrainingJobs
from app.training_status import Stage
from svfit_diffusion.errors import StorageError
from svfit_diffusion.files.adapter import read_adapter


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


def test_what_the_library_cannot_take_is_kept_elsewhere(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = AdapterLibrary(tmp_path / "adapters", base, 2**20)
    jobs = TrainingJobs(base, library, tmp_path / "training", Limits())
    full_disk.fill(monkeypatch, library.folder)
    jobs.start("rex", PHOTOS, settings(max_train_steps=1))
    status = finished(jobs)
    assert status.stage is Stage.FAILED and not status.kept
    assert "the library cannot take the adapter" in status.message
    assert str(tmp_path) not in status.message
    (kept,) = (tmp_path / "training").glob("unsaved-*/*.safetensors")
    assert read_adapter(kept).parameter_count > 0
    assert not any(library.folder.iterdir())


def test_a_training_without_room_ends_with_a_sentence(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = AdapterLibrary(tmp_path / "adapters", base, 2**20)
    jobs = TrainingJobs(base, library, tmp_path / "training", Limits())
    (tmp_path / "training").mkdir()
    full_disk.fill(monkeypatch, tmp_path / "training")
    prior = {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2}
    for changes in ({}, prior):
        jobs.start("rex", PHOTOS, settings(**changes))
        status = finished(jobs)
        assert status.stage is Stage.FAILED
        assert "the server has no room, or may not write" in status.message


def test_a_picture_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.effect_noise((64, 64), 50)
    with full_disk.small_files(100), pytest.raises(StorageError):
        save_picture(tmp_path, picture, PictureSettings("a dog"))
    assert not any(tmp_path.iterdir())
    full_disk.fill(monkeypatch, tmp_path)
    with pytest.raises(StorageError) as full:
        save_picture(tmp_path, picture, PictureSettings("a dog"))
    told, _ = sentence(full.value)
    assert "no room" in told and str(tmp_path) not in told


def test_what_an_app_that_died_left_is_gone_at_the_next_start(
    base: BaseModel, tmp_path: Path
) -> None:
    photos = tmp_path / "training" / ".scratch.abcd_123.tmp"
    half = tmp_path / "adapters" / ".rex.safetensors.abcd_123.tmp"
    for path in (photos / "00.png", half):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    library = AdapterLibrary(half.parent, base, 2**20)
    TrainingJobs(base, library, photos.parent, Limits())
    assert photos.exists() and half.exists(), "others may be at work"
    long_ago = time.time() - 2 * 24 * 60 * 60
    for path in (photos, half):
        os.utime(path, (long_ago, long_ago))
    library = AdapterLibrary(half.parent, base, 2**20)
    TrainingJobs(base, library, photos.parent, Limits())
    assert not photos.exists() and not half.exists()
