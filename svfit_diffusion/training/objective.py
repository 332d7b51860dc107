"""What a step minimises: losses on the subject's photos, and on what the base knows of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from svfit_diffusion.families import Conditions, Family, NoiseProcess
from svfit_diffusion.training.batches import Batch, Share, draw_batches, draw_shares
from svfit_diffusion.training.photo_set import PhotoSet
from svfit_diffusion.training.subject import Subject, rows_belong_to

Losses = tuple[Tensor, Tensor | None]
"""Mean loss of a subject's photos, and of what keeps its class, if anything does."""


@dataclass(frozen=True)
class BasePrior:
    """Prior preservation without class images: what the base says is to be said.

    Attributes:
        class_prompt: under which the subject's photos are denoised.
        kept: its conditions, if no text encoder is trained; None encodes it in every step.
    """

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
        subject: the adapter in training, if there is one.
    """

    family: Family
    process: NoiseProcess
    photo_sets: Sequence[PhotoSet]
    seed: int
    mask_background_weight: float = 0.0
    base_prior: BasePrior | None = None
    subject: Subject | None = None

    def losses(self, positions: list[int]) -> Losses:
        """Losses at these positions of the stream of examples."""
        return losses_in_one_pass([self], [positions])[0]

    def shares(self, positions: list[int]) -> list[Share]:
        """The examples at these positions, of each set of photos."""
        return draw_shares(self.photo_sets, self.process, self.seed, positions, self.subject)

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


def losses_in_one_pass(
    objectives: Sequence[Objective], positions: Sequence[list[int]]
) -> list[Losses]:
    """The losses of several subjects on one base, by calls of its models that they share.

    Args:
        objectives: of the subjects; all that is not of photos is alike.
        positions: of each one's stream of examples.
    """
    shares = [o.shares(own) for o, own in zip(objectives, positions, strict=True)]
    batches = draw_batches([share for own in shares for share in own])
    owner = [o for o, own in zip(objectives, shares, strict=True) for s in own for _ in s.draws]
    values = []
    for batch in batches:
        with rows_belong_to([owner[row].subject for row in batch.rows]):
            values.append(objectives[0].batch_losses(batch))
    each = _in_order(batches, values)
    distances = _distances_from_base(batches, _of_instances(objectives, shares))
    losses: list[Losses] = []
    start = 0
    for objective, own in zip(objectives, shares, strict=True):
        count = len(own[0].draws)
        means = [part.mean() for part in each[start : start + len(own) * count].split(count)]
        if objective.base_prior:
            rows = range(start, start + count)
            means.append(torch.stack([distances[row] for row in rows]).mean())
        losses.append((means[0], torch.stack(means[1:]).sum() if len(means) > 1 else None))
        start += len(own) * count
    return losses


def _of_instances(
    objectives: Sequence[Objective], shares: Sequence[Sequence[Share]]
) -> dict[int, Objective]:
    """Which examples are photos of subjects that have a prior of the base, and whose."""
    found: dict[int, Objective] = {}
    start = 0
    for objective, own in zip(objectives, shares, strict=True):
        if objective.base_prior:
            found |= dict.fromkeys(range(start, start + len(own[0].draws)), objective)
        start += sum(len(share.draws) for share in own)
    return found


def _distances_from_base(batches: list[Batch], wanted: dict[int, Objective]) -> dict[int, Tensor]:
    """How far examples are, under their class prompts, from what the base says of them."""
    distances: dict[int, Tensor] = {}
    for batch in batches:
        here = [i for i, row in enumerate(batch.rows) if row in wanted]
        if not here:
            continue
        part = batch.select(here)
        owners = [wanted[row] for row in part.rows]
        family, process, subject = owners[0].family, owners[0].process, owners[0].subject
        assert subject is not None  # or there is nothing to keep near the base
        device = family.model.device
        latents, noise, time = (t.to(device) for t in (part.latents, part.noise, part.time))
        noisy = process.noisy(latents, noise, time)
        with torch.no_grad(), subject.absent():
            told = _class_conditions(owners, part.conditions)
            base = family.predict(noisy, time, told, part.sizes).float()
        told = _class_conditions(owners, part.conditions)
        with rows_belong_to([owner.subject for owner in owners]):
            prediction = family.predict(noisy, time, told, part.sizes).float()
        errors = process.weigh((prediction - base).square().mean((1, 2, 3)), time)
        distances |= zip(part.rows, errors, strict=True)
    return distances


def _class_conditions(owners: Sequence[Objective], beside: Conditions) -> Conditions:
    """What the class prompts of rows say, each encoded as its subject does."""
    parts = []
    for _, run in groupby(range(len(owners)), key=lambda row: id(owners[row])):
        rows = list(run)
        owner = owners[rows[0]]
        assert owner.base_prior is not None
        with rows_belong_to([owner.subject]):
            parts.append(owner.base_prior.conditions(owner.family, beside.select(rows)))
    return Conditions.cat(parts)


def _in_order(batches: list[Batch], values: list[Tensor]) -> Tensor:
    """Losses of all examples in the order in which they were drawn."""
    if len(batches) == 1:
        return values[0]
    rows = torch.tensor([row for batch in batches for row in batch.rows])
    return torch.cat(values)[rows.argsort().to(values[0].device)]
