"""Examples put together for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.families import Conditions, NoiseProcess, PhotoSize
from svfit_diffusion.training.draws import Draw
from svfit_diffusion.training.photo_set import Latent, PhotoSet, encoded_once
from svfit_diffusion.training.subject import Subject, rows_belong_to


@dataclass(frozen=True)
class Batch:
    """Examples of one size, ready for the denoiser.

    Attributes:
        rows: their places among all that were drawn.
        latents: `(n, c, h, w)` float32.
        noise: like `latents`.
        time: `(n,)`, of the family's noise process.
        conditions: of their prompts.
        sizes: how they were cut.
        masks: `(n, 1, h, w)`; ones where a photo has no mask; None if none has.
    """

    rows: list[int]
    latents: Tensor
    noise: Tensor
    time: Tensor
    conditions: Conditions
    sizes: list[PhotoSize]
    masks: Tensor | None

    def select(self, places: list[int]) -> Batch:
        """Some of the examples, by their places in this batch."""
        return Batch(
            [self.rows[i] for i in places],
            self.latents[places],
            self.noise[places],
            self.time[places],
            self.conditions.select(places),
            [self.sizes[i] for i in places],
            None if self.masks is None else self.masks[places],
        )


@dataclass(frozen=True)
class Example:
    """One example with the noise it gets."""

    latent: Latent
    noise: Tensor
    time: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its latent."""
        return tuple(self.latent.values.shape)


def make_batches(examples: Sequence[Example], conditions: Conditions) -> list[Batch]:
    """Put examples of the same size together, each in the place where it first comes."""
    shapes = list(dict.fromkeys(example.shape for example in examples))
    batches = []
    for shape in shapes:
        rows = [i for i, example in enumerate(examples) if example.shape == shape]
        here = [examples[i] for i in rows]
        batches.append(
            Batch(
                rows,
                torch.stack([example.latent.values for example in here]),
                torch.stack([example.noise for example in here]),
                torch.stack([example.time for example in here]),
                conditions if len(shapes) == 1 else conditions.select(rows),
                [example.latent.size for example in here],
                _masks([example.latent for example in here]),
            )
        )
    return batches


def _masks(latents: Sequence[Latent]) -> Tensor | None:
    if all(latent.mask is None for latent in latents):
        return None
    ones = torch.ones(1, *latents[0].values.shape[1:])
    return torch.stack([ones if latent.mask is None else latent.mask for latent in latents])


@dataclass(frozen=True)
class Share:
    """What a subject draws from one set of its photos.

    Attributes:
        photo_set: the set.
        process: draws noise and times.
        draws: which photos.
        subject: whose they are; None where no adapter is in training.
    """

    photo_set: PhotoSet
    process: NoiseProcess
    draws: list[Draw]
    subject: Subject | None

    def examples(self) -> list[Example]:
        """The photos drawn, with the noise that follows in their draws."""
        examples = []
        for draw in self.draws:
            latent = self.photo_set.latent(draw)
            noise, time = self.process.draw(latent.values, draw.generator)
            examples.append(Example(latent, noise, time))
        return examples


def draw_shares(
    photo_sets: Sequence[PhotoSet],
    process: NoiseProcess,
    seed: int,
    positions: Sequence[int],
    subject: Subject | None = None,
) -> list[Share]:
    """What a subject draws at `positions` of the stream of each of its sets.

    Args:
        photo_sets: instance photos, and class images if there are any.
        process: draws noise and times.
        seed: the run's seed.
        positions: 0, 1, 2, …
        subject: whose they are, if its adapter is in training.
    """
    return [
        Share(photo_set, process, [photo_set.draw(seed, p) for p in positions], subject)
        for photo_set in photo_sets
    ]


def draw_batches(shares: Sequence[Share]) -> list[Batch]:
    """The examples of all shares, one share after the other, and their conditions, which are
    encoded together where they are not kept.
    """
    examples = [example for share in shares for example in share.examples()]
    return make_batches(examples, Conditions.cat(_conditions(shares)))


def _conditions(shares: Sequence[Share]) -> list[Conditions]:
    if shares[0].photo_set.keeps_conditions:
        return [share.photo_set.conditions(share.draws) for share in shares]
    asked = [(s.subject, prompt) for s in shares for prompt in s.photo_set.prompts(s.draws)]

    def encode(different: list[tuple[Subject | None, str]]) -> Conditions:
        with rows_belong_to([subject for subject, _ in different]):
            return shares[0].photo_set.family.encode_prompts([prompt for _, prompt in different])

    told = encoded_once(asked, encode)
    parts, start = [], 0
    for share in shares:
        end = start + len(share.draws)
        parts.append(share.photo_set.conditions(share.draws, told.select(range(start, end))))
        start = end
    return parts
