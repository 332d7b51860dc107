"""One training loop for all methods: the same examples, noise, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import nn

from benchmarks.methods import Adapted
from benchmarks.subjects import Prompt, Subject
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.photo_set import PhotoSet, draw_batch
from svfit_diffusion.training.photos import Photo, load_photos
from svfit_diffusion.training.setup import make_optimizer

_WARMUP_SHARE = 0.05
_CONTROL_SEED = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What all methods share.

    Attributes:
        steps: optimizer steps.
        batch: photos per step, and as many class images if there is prior preservation.
        prior_loss_weight: weight of the loss on class images; 0 is no prior preservation.
        snr_gamma: γ of Min-SNR weighting of the loss; 0 is none.
        inference_steps: of generated images.
        guidance: of generated images.
        rounds: images per prompt.
    """

    steps: int = 100
    batch: int = 4
    prior_loss_weight: float = 0.0
    snr_gamma: float = 5.0
    inference_steps: int = 12
    guidance: float = 2.5
    rounds: int = 2


def train(
    pipe: Any,
    adapted: Adapted,
    subject: Subject,
    class_photos: list[Photo],
    recipe: Recipe,
    learning_rate: float,
    seed: int,
) -> Iterator[int]:
    """Train as the trainer does, and yield the number of each step done.

    Args:
        pipe: whose UNet and text encoder `adapted` made trainable.
        adapted: what to train.
        subject: what to learn.
        class_photos: images of the class by the base, with its prompt; for prior preservation.
        recipe: steps and batch.
        learning_rate: at its peak.
        seed: of the examples and their noise.
    """
    config = TrainingConfig(
        pretrained_model_name_or_path="unused",
        instance_data_dir=str(subject.folder),
        instance_prompt=subject.instance_prompt,
        learning_rate=learning_rate,
        snr_gamma=recipe.snr_gamma,
    )
    resolution = int(pipe.unet.config.sample_size) * int(pipe.vae_scale_factor)
    photos = load_photos(subject.folder, subject.instance_prompt)
    photo_sets = [PhotoSet(photos, pipe, config, resolution, stream=0)]
    weights = [1.0]
    if recipe.prior_loss_weight:
        photo_sets.append(PhotoSet(class_photos, pipe, config, resolution, stream=1))
        weights.append(recipe.prior_loss_weight)
    for photo_set in photo_sets:
        photo_set.cache_latents()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    objective = Objective(scheduler, config.snr_gamma or None)
    optimizer = make_optimizer(config, [{"params": adapted.parameters, "lr": learning_rate}])
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=round(_WARMUP_SHARE * recipe.steps),
        num_training_steps=recipe.steps,
    )
    for step in range(recipe.steps):
        positions = range(step * recipe.batch, (step + 1) * recipe.batch)
        batch = draw_batch(photo_sets, objective, seed, positions)
        losses = objective.batch_losses(pipe.unet, batch).chunk(len(photo_sets))
        total = sum(weight * loss.mean() for weight, loss in zip(weights, losses, strict=True))
        torch.as_tensor(total).backward()
        nn.utils.clip_grad_norm_(adapted.parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        if adapted.pruner is not None:
            adapted.pruner.weigh()
            adapted.pruner.prune(step + 1)
        optimizer.zero_grad()
        yield step + 1


@torch.no_grad()
def generate(
    pipe: Any, prompts: list[str], recipe: Recipe, seed: int, rounds: int | None = None
) -> list[Image.Image]:
    """Images of the prompts in one batch, prompts running fastest, each from its own noise."""
    texts = prompts * (recipe.rounds if rounds is None else rounds)
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipe(
        texts,
        num_inference_steps=recipe.inference_steps,
        guidance_scale=recipe.guidance,
        generator=[torch.Generator().manual_seed(1000 * (seed + 1) + i) for i in range(len(texts))],
    ).images
    return images


def subject_images(
    pipe: Any, prompts: tuple[Prompt, ...], recipe: Recipe, seed: int
) -> list[Image.Image]:
    """Images of the subject's prompts."""
    return generate(pipe, [prompt.text for prompt in prompts], recipe, seed)


def control_images(
    pipe: Any, prompts: tuple[str, ...], recipe: Recipe, seed: int
) -> list[Image.Image]:
    """Images that should not change, one of each prompt."""
    return generate(pipe, list(prompts), recipe, _CONTROL_SEED + seed, rounds=1)
