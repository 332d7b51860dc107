"""What benchmarks do with a trainer between its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image

from svfit_diffusion.training import Trainer
from svfit_diffusion.training.batches import draw_batches, draw_shares

_SEED = 1234


@torch.no_grad()
def fixed_loss(trainer: Trainer, timesteps: int = 10) -> float:
    """Loss over all instance photos, always at the same noise and the same timesteps (of ε or v).

    Args:
        trainer: before, between or after its steps.
        timesteps: how many per photo, spread evenly.
    """
    photo_set, objective = trainer.photo_sets[0], trainer.objective
    positions = range(len(photo_set.photos))
    total = int(trainer.pipe.scheduler.config["num_train_timesteps"])
    losses = []
    with trainer.generating():
        for index in range(timesteps):
            at = [index * len(positions) + position for position in positions]
            shares = draw_shares([photo_set], objective.process, _SEED, at)
            for batch in draw_batches(shares):
                same = torch.full_like(batch.time, round((index + 0.5) / timesteps * total))
                batch = dataclasses.replace(batch, time=same)
                losses.append(objective.batch_losses(batch).cpu())
    return float(torch.cat(losses).mean())


def generate(
    trainer: Trainer, prompts: Sequence[str], rounds: int, *, steps: int, guidance: float
) -> list[Image.Image]:
    """Images of the prompts in one batch, prompts running fastest; a seed for each."""
    with trainer.generating() as pipe:
        images: list[Image.Image] = pipe(
            list(prompts) * rounds,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[
                torch.Generator().manual_seed(_SEED + i) for i in range(rounds * len(prompts))
            ],
        ).images
    return images
