"""Training runs of a few steps on a tiny base."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image

from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.trainer import Trainer


def make_photos(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for i, colour in enumerate(["red", "orange", "brown"]):
        Image.new("RGB", (24, 24), colour).save(folder / f"{i}.png")
    return folder


def make_config(folder: Path, **changes: Any) -> TrainingConfig:
    """Settings of a run of six steps whose photos and output are in a folder."""
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": "tiny",
        "instance_data_dir": str(make_photos(folder / "photos")),
        "instance_prompt": "a photo of sks dog",
        "output_dir": str(folder / "out"),
        "train_text_encoder": False,
        "train_batch_size": 1,
        "max_train_steps": 6,
        "lr_warmup_steps": 0,
        "num_inference_steps": 1,
        "num_validation_images": 1,
        "seed": 0,
    }
    return TrainingConfig(**{**settings, **changes})


def make_trainer(folder: Path, steps: int = 0, **changes: Any) -> Trainer:
    """A trainer of `make_tiny_pipeline()` after some steps."""
    config = make_config(folder, **changes)
    trainer = Trainer(config, pipe=tiny.make_tiny_pipeline(), show_progress=False)
    advance(trainer, steps)
    return trainer


def advance(trainer: Trainer, steps: int) -> None:
    for _ in itertools.islice(trainer.steps(), steps):
        pass


def shifts(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.sigma_parameters()])
