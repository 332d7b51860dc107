"""What benchmarks do with a trainer between its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from svfit_diffusion.training import Trainer

_SEED = 1234


@torch.no_grad()
def fixed_loss(trainer: Trainer, timesteps: int = 10) -> float:
    """Loss over all instance photos, always at the same noise and the same timesteps.

    Args:
        trainer: before, between or after its steps.
        timesteps: how many per photo, spread evenly.
    """
    photo_set, objective = trainer.photo_sets[0], trainer.objective
    count = len(photo_set.photos)
    total = int(objective.scheduler.config["num_train_timesteps"])
    losses = []
    with trainer.generating() as pipe:
        device, dtype = pipe.unet.device, pipe.unet.dtype
        for index in range(timesteps):
            draws = [photo_set.draw(_SEED, index * count + i) for i in range(count)]
            latents = torch.stack([photo_set.latent(draw) for draw in draws])
            noise = torch.stack(
                [torch.randn(latents.shape[1:], generator=draw.generator) for draw in draws]
            )
            timestep = torch.full((count,), round((index + 0.5) / timesteps * total))
            noisy = objective.noisy(latents, noise, timestep).to(device, dtype)
            text = photo_set.embeddings(draws).to(device, dtype)
            prediction = pipe.unet(noisy, timestep.to(device), text).sample.cpu()
            losses.append(objective.losses(prediction, latents, noise, timestep))
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
