"""What is made ready before the first step: averages, empty prompts, offloading, disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training import Trainer, TrainingConfig


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(["red", "orange", "brown"]):
        Image.new("RGB", (24, 24), colour).save(folder / f"{i}.png")
    return folder


def make_trainer(photos: Path, steps: int = 3, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "instance_data_dir": str(photos),
        "instance_prompt": "a photo of sks dog",
        "output_dir": str(photos.parent / "out"),
        "max_train_steps": steps,
        "lr_warmup_steps": 0,
        "train_batch_size": 2,
        "num_inference_steps": 2,
        "seed": 0,
    }
    pipe = tiny.make_tiny_pipeline()
    return Trainer(TrainingConfig(**settings | changes), pipe=pipe, show_progress=False)


def deltas(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach() for p in trainer.sigma_parameters()])


def test_the_running_mean_is_saved_and_drawn_and_training_goes_on(
    photos: Path, tmp_path: Path
) -> None:
    plain, averaged = make_trainer(photos), make_trainer(photos, use_ema=True, ema_decay=0.5)
    seen = []
    for trainer in (plain, averaged):
        seen.append([])
        for _ in trainer.steps():
            seen[-1].append(deltas(trainer))
            trainer.adapter()  # which exchanges the shifts for a moment
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    saved = torch.cat([v for d in averaged.adapter().deltas.values() for v in d.values()])
    # EMAModel warms its decay up: min(0.5, (1 + n) / (10 + n)).
    expected = torch.zeros_like(saved)
    for n, delta in enumerate(seen[0]):
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * delta
    torch.testing.assert_close(saved, expected)
    with averaged.generating() as pipe:
        drawn = tiny.run_pipeline(pipe)
    fresh = tiny.make_tiny_pipeline()
    fresh.load_svfit_weights(averaged.save(tmp_path), show_progress=False)
    assert torch.equal(tiny.run_pipeline(fresh), drawn)
    assert torch.equal(deltas(averaged), seen[0][-1])


def test_empty_prompts_take_their_share(photos: Path) -> None:
    trainer = make_trainer(photos, proportion_empty_prompts=0.5, train_text_encoder=False)
    photo_set = trainer.photo_sets[0]
    empty = trainer.family.encode_prompts([""])["prompt_embeds"][0]
    found = [
        torch.equal(photo_set.conditions([photo_set.draw(0, i)])["prompt_embeds"][0], empty)
        for i in range(60)
    ]
    assert 15 < sum(found) < 45


def test_offloading_and_the_disk_change_nothing_of_the_result(photos: Path) -> None:
    prior = {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2}
    plain = make_trainer(photos, **prior)
    saving = make_trainer(photos, offload=True, cache_to_disk=True, **prior)
    for one, other in itertools.zip_longest(plain.steps(), saving.steps()):
        assert one.loss == other.loss
    assert torch.equal(deltas(plain), deltas(saving))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting_scheme": "logit_normal"}, "flow matching"),
        ({"proportion_empty_prompts": 1.0}, "less than 1"),
        ({"ema_decay": -0.1}, "at least 0"),
        ({"with_base_prior": True}, "class_prompt"),
        ({"mask_background_weight": -1.0}, "must not be negative"),
        ({"resolution": 17}, "multiple of"),
    ],
)
def test_what_does_not_fit_is_named_and_the_pipeline_left(
    photos: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(photos, **changes)


def test_a_saved_file_names_its_base(photos: Path, tmp_path: Path) -> None:
    path = make_trainer(photos, pretrained_model_name_or_path="some/base").save(tmp_path)
    assert set(load_file(path)) > {"unet.sketch", "text_encoder.sketch"}
