"""Several subjects in one pass: each is trained as alone, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor

from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.shared_pass import SharedPass

NAMES = ("rex", "mia", "tom")


def make_photos(folder: Path, seed: int, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for i, (width, height) in enumerate(sizes):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def make_configs(folder: Path, **changes: Any) -> dict[str, TrainingConfig]:
    """Settings of three subjects that differ in all that may differ."""
    own: dict[str, dict[str, Any]] = {
        "rex": {"seed": 0},
        "mia": {"seed": 1, "learning_rate": 0.02, "train_batch_size": 1, "max_train_steps": 4},
        "tom": {"seed": 2, "optimizer": "adafactor", "max_train_steps": 2},
    }
    common: dict[str, Any] = {
        "pretrained_model_name_or_path": "tiny",
        "train_text_encoder": False,
        "train_batch_size": 2,
        "max_train_steps": 3,
        "lr_warmup_steps": 0,
        "num_inference_steps": 1,
        "num_validation_images": 1,
    }
    return {
        name: TrainingConfig(
            instance_data_dir=str(
                make_photos(folder / name, i, [(24, 24), (32, 16), (16, 32)][: 3 - i % 2])
            ),
            instance_prompt=f"a photo of {name}",
            output_dir=str(folder / "out" / name),
            **common | own[name] | changes,
        )
        for i, name in enumerate(NAMES)
    }


def shifts(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach() for parameter in trainer.sigma_parameters()])


def alone(config: TrainingConfig) -> Trainer:
    trainer = Trainer(config, pipe=tiny.make_tiny_pipeline(), show_progress=False)
    list(trainer.steps())
    return trainer


def make_shared(configs: dict[str, TrainingConfig]) -> SharedPass:
    first = next(iter(configs.values()))
    shared = SharedPass(first, pipe=tiny.make_tiny_pipeline(), show_progress=False)
    for name, config in configs.items():
        shared.join(name, config)
    return shared


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_text_encoder": True},
        {"train_text_encoder": True, "gradient_checkpointing": True, "aspect_buckets": True},
        {"train_text_encoder": True, "with_base_prior": True, "class_prompt": "a dog"},
        {"budget": 70, "gradient_accumulation_steps": 2},
        {"target": ["all"], "rank": "0.9"},
        {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2},
    ],
)
def test_each_is_trained_as_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    configs = make_configs(tmp_path, **changes)
    expected = {name: alone(config) for name, config in configs.items()}
    shared = make_shared(configs)
    records = list(shared.steps())
    for name, trainer in shared.trainers.items():
        want, have = shifts(expected[name]), shifts(trainer)
        print(name, float((want - have).norm() / want.norm()), float(want.norm()))
    for name in NAMES:
        own = [record for owner, record in records if owner == name]
        assert [record.step for record in own] == list(range(1, configs[name].max_train_steps + 1))
