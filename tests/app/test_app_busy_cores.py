"""Trainings and drawings leave cores to other programs, each in the thread that computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from app_server import wait_for_trainings
from PIL import Image

from app.base_model import BaseModel
from app.generation import ImageGenerator
from app.library import AdapterLibrary
from app.photos import CroppedPhoto
from app.picture import PictureSettings
from app.settings import Limits
from app.training_jobs import TrainingJobs
from svfit_diffusion.serving.painting import Painter
from svfit_diffusion.training import Trainer, TrainingConfig


@pytest.fixture(autouse=True)
def _three_of_four_cores_are_busy(four_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 75.0)
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda process: 0.0)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many threads torch computes on, by what is computed."""
    seen: dict[str, int] = {}

    def noting(kind: type, method: str) -> None:
        real = getattr(kind, method)

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen[method] = torch.get_num_threads()
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, method, noted)

    noting(Painter, "paint")
    noting(Trainer, "steps")
    return seen


def test_the_threads_that_draw_and_train_leave_them(
    saved_pipe: Path, tmp_path: Path, counts: dict[str, int]
) -> None:
    base = BaseModel(str(saved_pipe), "cpu")
    library = AdapterLibrary(tmp_path / "adapters", base, 2**20)
    generator = ImageGenerator(base, library, Limits())
    for _ in generator.run([PictureSettings("a dog", steps=1, width=16, height=16)]):
        pass
    assert counts == {"paint": 1}

    torch.set_num_threads(4)  # what a thread that begins now would compute on
    jobs = TrainingJobs(base, library, tmp_path / "training", Limits())
    photos = [CroppedPhoto(f"{i}.png", Image.new("RGB", (40, 40), "red")) for i in range(3)]
    config = TrainingConfig(
        instance_prompt="a photo of sks dog",
        max_train_steps=1,
        num_inference_steps=1,
        num_validation_images=1,
    )
    jobs.start("rex", photos, config)
    wait_for_trainings()
    assert counts == {"paint": 1, "steps": 1}
