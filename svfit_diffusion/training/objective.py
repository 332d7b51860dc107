"""What a step minimises: losses on the subject's photos, and on what the base knows of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.families import Conditions, Family, NoiseProcess
from svfit_diffusion.training.batches import Batch, draw_batches
from svfit_diffusion.training.photo_set import PhotoSet
from svfit_diffusion.training.subject import Subject


@dataclass(frozen=True)
class BasePrior:
    """Prior preservation without class images: what the base says is to be said.

    Attributes:
        subject: the adapter in training, absent while the base speaks.
        class_prompt: under which the subject's photos are denoised.
        kept: its conditions, if no text encoder is trained; None encodes it in every step.
    """

    subject: Subject
    class_prompt: str
    kept: Conditions | None

    def conditions(self, family: Family, beside: Conditions) -> Conditions:
        """The class prompt's in place of other prompts, with their images to edit."""
        told = self.kept or family.encode_prompts([self.class_prompt])
        return told.select([0] * len(beside)).with_references(beside.references)


@dataclass(frozen=True)
class Objective:
    """Losses of examples.

    Attributes:
        family: of the pipeline.
        process: its noise process.
        photo_sets: the subject's photos, and the class images if there are any.
        seed: of the run.
        mask_background_weight: weight of errors outside of masks.
        base_prior: prior preservation without class images, if it is wanted.
    """

    family: Family
    process: NoiseProcess
    photo_sets: Sequence[PhotoSet]
    seed: int
    mask_background_weight: float = 0.0
    base_prior: BasePrior | None = None

    def losses(self, positions: list[int]) -> tuple[Tensor, Tensor | None]:
        """Mean loss of the subject's photos at these positions of the stream of examples, and of
        what keeps the class, if anything does.
        """
        batches = draw_batches(self.photo_sets, self.process, self.seed, positions)
        each = _in_order(batches, [self.batch_losses(batch) for batch in batches])
        means = [part.mean() for part in each.chunk(len(self.photo_sets))]
        if self.base_prior:
            means.append(self._distance_from_base(self.base_prior, batches, len(positions)))
        return means[0], torch.stack(means[1:]).sum() if len(means) > 1 else None

    def batch_losses(self, batch: Batch) -> Tensor:
        """Weighted error of each example, `(n,)` float32, computed where the denoiser is."""
        device = self.family.model.device
        latents, noise, time = (t.to(device) for t in (batch.latents, batch.noise, batch.time))
        noisy = self.process.noisy(latents, noise, time)
        prediction = self.family.predict(noisy, time, batch.conditions, batch.sizes)
        if batch.masks is None:
            return self.process.losses(prediction, latents, noise, time)
        outside = self.mask_background_weight
        weights = outside + (1 - outside) * batch.masks.to(device)
        wanted = self.process.target(latents, noise, time).float()
        squares = (prediction.float() - wanted).square().mean(1, keepdim=True)
        errors = (squares * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))
        return self.process.weigh(errors, time)

    def _distance_from_base(self, prior: BasePrior, batches: list[Batch], photos: int) -> Tensor:
        """Mean over the subject's photos, which come first, under the class prompt."""
        family, device = self.family, self.family.model.device
        total = torch.zeros((), device=device)
        for batch in batches:
            here = [i for i, row in enumerate(batch.rows) if row < photos]
            if not here:
                continue
            part = batch.select(here)
            latents, noise, time = (t.to(device) for t in (part.latents, part.noise, part.time))
            noisy = self.process.noisy(latents, noise, time)
            with torch.no_grad(), prior.subject.absent():
                told = prior.conditions(family, part.conditions)
                wanted = family.predict(noisy, time, told, part.sizes).float()
            told = prior.conditions(family, part.conditions)
            prediction = family.predict(noisy, time, told, part.sizes).float()
            distances = (prediction - wanted).square().mean((1, 2, 3))
            total = total + self.process.weigh(distances, time).sum() / photos
        return total


def _in_order(batches: list[Batch], values: list[Tensor]) -> Tensor:
    """Losses of all examples in the order in which they were drawn."""
    if len(batches) == 1:
        return values[0]
    rows = torch.tensor([row for batch in batches for row in batch.rows])
    return torch.cat(values)[rows.argsort().to(values[0].device)]
