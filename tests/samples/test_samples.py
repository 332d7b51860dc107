"""The embedded base model, its subjects and the ready adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from svfit_diffusion.files.adapter import read_adapter
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.photos import load_photos
from svfit_diffusion.training.trainer import Trainer

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
TOYBOX = SAMPLES / "toybox"
SUBJECTS = sorted(path.parent for path in (SAMPLES / "subjects").glob("*/subject.json"))
ADAPTERS = sorted(path.parent for path in (SAMPLES / "adapters").glob("*/*.safetensors"))


@pytest.fixture(scope="module")
def toybox() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(TOYBOX)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, prompt: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=4, generator=generator, output_type="pt").images


def test_toybox_is_small() -> None:
    assert sum(path.stat().st_size for path in TOYBOX.rglob("*") if path.is_file()) <= 30e6


def test_toybox_draws_what_it_is_asked(toybox: Any) -> None:
    assert toybox.safety_checker is None
    beach, snow = (
        generate(toybox, f"a photo of a dog {place}") for place in ("on the beach", "in the snow")
    )
    assert beach.shape[-2:] == (64, 64)
    assert torch.isfinite(beach).all()
    # Snow is white; a beach has sand.
    assert snow.min(dim=1).values.mean() > beach.min(dim=1).values.mean() + 0.1


def test_unseen_words_have_tokens(toybox: Any) -> None:
    ids = toybox.tokenizer("a photo of sks dog ☃").input_ids
    assert toybox.tokenizer.unk_token_id not in ids[1:-1]


@pytest.mark.parametrize("folder", SUBJECTS, ids=lambda path: path.name)
def test_subjects_are_complete(folder: Path) -> None:
    about = json.loads((folder / "subject.json").read_text())
    assert about["name"] == folder.name
    assert "sks" in about["instance_prompt"]
    assert about["class_name"] in about["class_prompt"]
    assert len(about["prompts"]) >= 6
    assert about["credit"]
    assert len(load_photos(folder, about["instance_prompt"])) == 5


def test_there_are_subjects_and_adapters() -> None:
    assert len(SUBJECTS) >= 6
    assert ADAPTERS


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda path: path.name)
def test_ready_adapter_fits_toybox_and_changes_its_images(folder: Path, toybox: Any) -> None:
    (path,) = folder.glob("*.safetensors")
    prompt = read_adapter(path).metadata.instance_prompt
    before = generate(toybox, prompt)
    toybox.load_svfit_weights(folder)
    try:
        assert (generate(toybox, prompt) - before).abs().mean() > 0.02
    finally:
        toybox.unload_svfit_weights()
    assert torch.equal(generate(toybox, prompt), before)


def test_main_job_lowers_the_loss_on_the_photos(tmp_path: Path) -> None:
    """Sixty steps of the defaults on one subject, judged on fixed noise."""
    about = json.loads((SUBJECTS[0] / "subject.json").read_text())
    config = TrainingConfig(
        pretrained_model_name_or_path=str(TOYBOX),
        instance_data_dir=str(SUBJECTS[0]),
        instance_prompt=about["instance_prompt"],
        output_dir=str(tmp_path),
        max_train_steps=60,
        seed=0,
    )
    trainer = Trainer(config, show_progress=False)

    def loss() -> float:
        with torch.no_grad():
            starts = range(0, 40, 10)
            return sum(float(trainer.objective.losses([*range(i, i + 10)])[0]) for i in starts)

    before = loss()
    for _ in trainer.steps():
        pass
    assert loss() < 0.95 * before
