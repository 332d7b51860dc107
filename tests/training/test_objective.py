"""Losses of examples: masks, order, the base's own prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from svfit_diffusion.families import NoiseSettings, family_of
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training.batches import draw_batches
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.photo_set import photo_sets
from svfit_diffusion.training.photos import load_photos


def make_objective(folder: Path, *, buckets: bool = False, scratch: Scratch | None = None) -> Any:
    pipe = tiny.make_tiny_pipeline()
    family = family_of(pipe)
    sets = photo_sets(
        family,
        [load_photos(folder, "a dog")],
        16,
        aspect_buckets=buckets,
        center_crop=True,
        random_flip=False,
        proportion_empty_prompts=0.0,
        scratch=scratch or Scratch(),
    )
    for photo_set in sets:
        photo_set.cache_latents()
        photo_set.cache_conditions()
    return Objective(family, family.noise_process(NoiseSettings()), sets, 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for i, size in enumerate([(32, 32), (64, 32), (32, 64), (48, 32)]):
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_white_mask_is_none(photos: Path) -> None:
    plain = make_objective(photos).losses([0, 1, 2, 3])[0]
    Image.new("L", (8, 8), 255).save(photos / "1.mask.png")
    torch.testing.assert_close(make_objective(photos).losses([0, 1, 2, 3])[0], plain)


@pytest.mark.parametrize("outside", [0.0, 0.25, 1.0])
def test_a_mask_weighs_errors_where_it_is(photos: Path, outside: float) -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(photos / "0.mask.png")
    objective = make_objective(photos)
    object.__setattr__(objective, "mask_background_weight", outside)
    (batch,) = draw_batches(objective.shares([0, 1, 2, 3]))
    (place,) = [i for i, m in enumerate(batch.masks) if m.min() < 0.5]
    found = objective.batch_losses(batch)
    family, process = objective.family, objective.process
    noisy = process.noisy(batch.latents, batch.noise, batch.time)
    prediction = family.predict(noisy, batch.time, batch.conditions, batch.sizes)
    squares = (prediction - batch.noise).square()
    half = squares.shape[-1] // 2
    # Resampling blurs the edge, so only what is beside it is black or white.
    assert batch.masks[place, ..., : half - 1].min() > 0.95
    assert batch.masks[place, ..., half + 1 :].max() < 0.05
    weights = outside + (1 - outside) * batch.masks[place].expand_as(squares[place])
    expected = (squares[place] * weights).sum() / weights.sum()
    torch.testing.assert_close(found[place], expected)
    torch.testing.assert_close(found[:place], squares[:place].mean((1, 2, 3)))


def test_buckets_of_several_shapes_keep_the_order_and_the_mean(photos: Path) -> None:
    objective = make_objective(photos, buckets=True)
    batches = draw_batches(objective.shares([0, 1, 2, 3]))
    assert len(batches) > 1
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3]
    alone = torch.stack([objective.losses([i])[0] for i in range(4)])
    torch.testing.assert_close(objective.losses([0, 1, 2, 3])[0], alone.mean())


def test_what_is_kept_on_disk_is_what_is_kept_in_memory(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoded"
    objective = make_objective(photos, scratch=Scratch(folder))
    assert list(folder.rglob("*.safetensors"))
    assert torch.equal(objective.losses([0, 1])[0], make_objective(photos).losses([0, 1])[0])
    del objective
    assert not list(folder.rglob("*.safetensors"))
