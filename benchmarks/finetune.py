"""One training loop for all methods: the same examples, noise, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import nn

from benchmarks.adapting import Adapted
from benchmarks.subjects import Prompt, Subject
from svfit_diffusion.families import Family, family_of
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.optimization import make_optimizer
from svfit_diffusion.training.photo_set import photo_sets
from svfit_diffusion.training.photos import Photo, load_photos

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
        guidance: of generated images; the base's own without.
        rounds: images per prompt.
    """

    steps: int = 100
    batch: int = 4
    prior_loss_weight: float = 0.0
    snr_gamma: float = 5.0
    inference_steps: int = 12
    guidance: float | None = None
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
        pipe: whose models `adapted` made trainable.
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
    family = family_of(pipe)
    kinds = [load_photos(subject.folder, subject.instance_prompt)]
    if recipe.prior_loss_weight:
        kinds.append(class_photos)
    sets = photo_sets(
        family,
        kinds,
        family.native_size,
        aspect_buckets=False,
        center_crop=True,
        random_flip=False,
        proportion_empty_prompts=0.0,
        scratch=Scratch(),
    )
    for photo_set in sets:
        photo_set.cache_latents()
    objective = Objective(family, family.noise_process(config.noise), sets, seed)
    optimizer = make_optimizer(
        config.optimizer_settings, [{"params": adapted.parameters, "lr": learning_rate}]
    )
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=round(_WARMUP_SHARE * recipe.steps),
        num_training_steps=recipe.steps,
    )
    for step in range(recipe.steps):
        positions = list(range(step * recipe.batch, (step + 1) * recipe.batch))
        instance, prior = objective.losses(positions)
        total = instance if prior is None else instance + recipe.prior_loss_weight * prior
        total.backward()
        nn.utils.clip_grad_norm_(adapted.parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        if adapted.pruner is not None:
            adapted.pruner.weigh()
            adapted.pruner.prune(step + 1)
        optimizer.zero_grad()
        yield step + 1


def drawing_arguments(family: Family, recipe: Recipe) -> dict[str, Any]:
    """Arguments of a pipeline's call, all but prompts and generators."""
    size = (family.native_size, family.native_size)
    return family.generation_arguments(size, recipe.inference_steps, recipe.guidance)


@torch.no_grad()
def generate(
    pipe: Any, prompts: list[str], recipe: Recipe, seed: int, rounds: int | None = None
) -> list[Image.Image]:
    """Images of the prompts in one batch, prompts running fastest, each from its own noise."""
    texts = prompts * (recipe.rounds if rounds is None else rounds)
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipe(
        texts,
        **drawing_arguments(family_of(pipe), recipe),
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
