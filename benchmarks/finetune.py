"""One training loop for all methods: the same examples, noise, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor, nn

from benchmarks.adapting import Adapted, Own
from benchmarks.rules import Vectors, leading_by_noise
from benchmarks.stratified import Stratified
from benchmarks.subjects import Prompt, Subject
from svfit_diffusion.families import Family, NoiseProcess, NoiseSettings, family_of
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training.checks import trained_text_encoders
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import BasePrior, Objective
from svfit_diffusion.training.optimization import make_optimizer
from svfit_diffusion.training.photo_set import PhotoSet, photo_sets
from svfit_diffusion.training.photos import Photo, load_photos

_WARMUP_SHARE = 0.05
_CONTROL_SEED = 1_000_000
_NEEDS_EXAMPLES = 64


@dataclass(frozen=True)
class Recipe:
    """What all methods share.

    Attributes:
        steps: optimizer steps.
        batch: photos per step, and as many class images if there is prior preservation.
        prior_loss_weight: weight of the loss on class images; 0 is no prior preservation.
        snr_gamma: γ of Min-SNR weighting of the loss, where a base predicts ε or v; 0 is none.
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


@dataclass(frozen=True)
class OtherPhotos:
    """What the base draws, with its prompts.

    Attributes:
        of_class: for prior preservation; none without it.
        generic: of many things.
    """

    of_class: Sequence[Photo] = ()
    generic: Sequence[Photo] = ()


def train(
    pipe: Any,
    adapted: Adapted,
    subject: Subject,
    others: OtherPhotos,
    recipe: Recipe,
    learning_rate: float,
    seed: int,
) -> Iterator[int]:
    """Train as the trainer does, and yield the number of each step done.

    Args:
        pipe: whose models `adapted` made trainable.
        adapted: what to train.
        subject: what to learn.
        others: what the base draws, for those that look at it.
        recipe: steps and batch.
        learning_rate: at its peak.
        seed: of the examples and their noise.
    """
    family, own = family_of(pipe), adapted.own
    config = _config(family, subject, recipe, learning_rate)
    objective = _objective(family, config, own, subject, others, recipe, seed)
    prior_weight = own.base_prior if own and own.base_prior else recipe.prior_loss_weight
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
        if own and own.by_noise:
            _backward_by_noise(objective, positions, own.vectors)
        else:
            instance, prior = objective.losses(positions)
            total = instance if prior is None else instance + prior_weight * prior
            total.backward()
        nn.utils.clip_grad_norm_(adapted.parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        adapted.after_step(step + 1)
        optimizer.zero_grad()
        yield step + 1


def _config(
    family: Family, subject: Subject, recipe: Recipe, learning_rate: float
) -> TrainingConfig:
    """What the trainer would be told."""
    has_snr = isinstance(family.noise_process(NoiseSettings()), Diffusion)
    return TrainingConfig(
        pretrained_model_name_or_path="unused",
        instance_data_dir=str(subject.folder),
        instance_prompt=subject.instance_prompt,
        learning_rate=learning_rate,
        snr_gamma=recipe.snr_gamma if has_snr else 0.0,
    )


def _objective(
    family: Family,
    config: TrainingConfig,
    own: Own | None,
    subject: Subject,
    others: OtherPhotos,
    recipe: Recipe,
    seed: int,
) -> Objective:
    """The trainer's objective, after what the base needs was measured where that is wanted."""
    process = family.noise_process(config.noise)
    if own and own.wants_needs:
        own.vectors.needs.extend(_needs(own, family, process, others.generic))
    if own and own.stratified:
        process = Stratified.of(process, seed)
    kinds: list[Sequence[Photo]] = [load_photos(subject.folder, subject.instance_prompt)]
    if recipe.prior_loss_weight:
        kinds.append(others.of_class)
    return Objective(
        family,
        process,
        _encoded(family, kinds),
        seed,
        base_prior=BasePrior(subject.class_prompt, None) if own and own.base_prior else None,
        subject=own.subject if own else None,
    )


def _encoded(family: Family, kinds: Sequence[Sequence[Photo]]) -> list[PhotoSet]:
    """Photos as the denoiser takes them."""
    sets = photo_sets(
        family,
        [list(kind) for kind in kinds],
        family.native_size,
        aspect_buckets=False,
        center_crop=True,
        random_flip=False,
        proportion_empty_prompts=0.0,
        scratch=Scratch(),
    )
    for photo_set in sets:
        photo_set.cache_latents()
        if not trained_text_encoders(family, None):
            photo_set.cache_conditions()
    return sets


def _needs(
    own: Own, family: Family, process: NoiseProcess, generic: Sequence[Photo]
) -> list[Tensor]:
    """Mean squared gradients of the loss on what the base draws, by the vectors at zero."""
    objective = Objective(family, process, _encoded(family, [generic]), 0, subject=own.subject)
    deltas = own.vectors.deltas
    needs = [torch.zeros_like(delta) for delta in deltas]
    for position in range(_NEEDS_EXAMPLES):
        loss, _ = objective.losses([position])
        for need, gradient in zip(
            needs, torch.autograd.grad(loss, deltas, materialize_grads=True), strict=True
        ):
            need.addcmul_(gradient, gradient, value=1 / _NEEDS_EXAMPLES)
    return needs


def _backward_by_noise(objective: Objective, positions: list[int], vectors: Vectors) -> None:
    """Gradients of the mean loss, of which noisy examples leave the lower spectrum out."""
    noise = {position: _noise_share(objective, position) for position in positions}
    for position in sorted(noise, key=noise.__getitem__, reverse=True):
        loss, _ = objective.losses([position])
        (loss / len(positions)).backward()
        leading_by_noise(vectors.deltas, noise[position])


def _noise_share(objective: Objective, position: int) -> float:
    """How much of what the denoiser is shown of an example is noise, 0 to 1."""
    (example,) = objective.shares([position])[0].examples()
    ones = torch.ones(1, 1, 1, 1)
    return float(objective.process.noisy(torch.zeros_like(ones), ones, example.time[None]))


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
