"""The embedded base models, their subjects and the ready adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from svfit_diffusion.files.adapter import read_adapter
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.photos import load_photos
from svfit_diffusion.training.trainer import Trainer

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
TOYBOX = SAMPLES / "toybox"
TOYBOX_FLOW = SAMPLES / "toybox_flow"
SUBJECTS = sorted(path.parent for path in SAMPLES.glob("*subjects/*/subject.json"))
ADAPTERS = sorted(path.parent for path in (SAMPLES / "adapters").glob("*/*.safetensors"))


def loaded(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def toybox() -> Any:
    return loaded(TOYBOX)


@pytest.fixture(scope="module")
def toybox_flow() -> Any:
    return loaded(TOYBOX_FLOW)


def generate(pipe: Any, prompt: str) -> torch.Tensor:
    side = {"height": 128, "width": 128} if isinstance(pipe, FluxPipeline) else {}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=4, generator=generator, output_type="pt", **side).images


@pytest.mark.parametrize(("folder", "most"), [(TOYBOX, 30e6), (TOYBOX_FLOW, 40e6)])
def test_bases_are_small(folder: Path, most: float) -> None:
    weights = [path for path in folder.rglob("*") if path.is_file() and "judges" not in path.parts]
    assert sum(path.stat().st_size for path in weights) <= most


@pytest.mark.parametrize("name", ["toybox", "toybox_flow"])
def test_bases_draw_what_they_are_asked(name: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(name)
    assert getattr(pipe, "safety_checker", None) is None
    beach, snow = (
        generate(pipe, f"a photo of a dog {place}") for place in ("on the beach", "in the snow")
    )
    assert beach.shape[-2:] == ((64, 64) if name == "toybox" else (128, 128))
    assert torch.isfinite(beach).all()
    # Snow is white; a beach has sand.
    assert snow.min(dim=1).values.mean() > beach.min(dim=1).values.mean() + 0.1


def test_unseen_words_have_tokens(toybox: Any, toybox_flow: Any) -> None:
    for tokenizer in (toybox.tokenizer, toybox_flow.tokenizer, toybox_flow.tokenizer_2):
        ids = tokenizer("a photo of sks dog ☃").input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]


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
    assert len(SUBJECTS) == 24
    assert len(ADAPTERS) >= 2


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda path: path.name)
def test_ready_adapter_fits_its_base_and_changes_its_images(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    (path,) = folder.glob("*.safetensors")
    about = read_adapter(path).metadata
    pipe, prompt = request.getfixturevalue(Path(about.base_model).name), about.instance_prompt
    before = generate(pipe, prompt)
    pipe.load_svfit_weights(folder)
    try:
        assert (generate(pipe, prompt) - before).abs().mean() > 0.02
    finally:
        pipe.unload_svfit_weights()
    assert torch.equal(generate(pipe, prompt), before)


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
