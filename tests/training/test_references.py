"""Training with images to edit: pairs of FLUX.1 Kontext."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image

from svfit_diffusion.errors import ConfigError, DataError
from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.photos import load_photos


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(["red", "orange"]):
        Image.new("RGB", (40, 32), colour).save(folder / f"{i}.png")
        Image.new("RGB", (40, 32), "blue").save(folder / f"{i}.condition.png")
    return folder


def make_trainer(pairs: Path, pipeline: str = "flux_kontext", **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "instance_data_dir": str(pairs),
        "instance_prompt": "make it sks",
        "output_dir": str(pairs.parent / "out"),
        "resolution": 32,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "lr_warmup_steps": 0,
        "num_inference_steps": 2,
        "seed": 0,
    }
    pipe = tiny_pipelines.build(pipeline)
    return Trainer(TrainingConfig(**settings | changes), pipe=pipe, show_progress=False)


@pytest.mark.parametrize("changes", [{}, {"aspect_buckets": True, "cache_latents": False}])
def test_pairs_train_and_draw(pairs: Path, changes: dict[str, Any]) -> None:
    trainer = make_trainer(pairs, **changes)
    assert len(trainer.photo_sets[0].photos) == 2
    draws = [trainer.photo_sets[0].draw(0, i) for i in range(2)]
    latent = trainer.photo_sets[0].latent(draws[0]).values
    references = trainer.photo_sets[0].conditions(draws).references
    assert references is not None and [r.shape for r in references] == [latent.shape] * 2
    assert all(torch.isfinite(torch.tensor(record.loss)) for record in trainer.steps())
    with_image = trainer.generate(["make it sks"], 1)[0][0]
    assert with_image.size == (32, 32)


def test_the_image_to_edit_changes_what_is_learned(pairs: Path) -> None:
    def learned() -> torch.Tensor:
        trainer = make_trainer(pairs)
        list(trainer.steps())
        return torch.cat([p.detach() for p in trainer.sigma_parameters()])

    one = learned()
    Image.new("RGB", (40, 32), "white").save(pairs / "0.condition.png")
    assert not torch.equal(one, learned())


def test_the_bases_prior_is_shown_them_too(pairs: Path) -> None:
    trainer = make_trainer(pairs, with_base_prior=True, class_prompt="make it a thing")
    assert next(iter(trainer.steps())).prior_loss == 0.0


def test_what_cannot_be_is_named(pairs: Path) -> None:
    with pytest.raises(ConfigError, match="Kontext does"):
        make_trainer(pairs, "flux")
    with pytest.raises(ConfigError, match="with_base_prior"):
        make_trainer(pairs, with_prior_preservation=True, class_prompt="a thing")
    (pairs / "1.condition.png").unlink()
    with pytest.raises(DataError, match="none: give it to all"):
        load_photos(pairs, "make it sks")
