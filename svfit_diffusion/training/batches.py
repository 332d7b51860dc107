"""Examples put together for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.families import Conditions, NoiseProcess, PhotoSize
from svfit_diffusion.training.photo_set import Latent, PhotoSet


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


def draw_batches(
    photo_sets: Sequence[PhotoSet], process: NoiseProcess, seed: int, positions: Sequence[int]
) -> list[Batch]:
    """The examples at `positions` of every set's stream, one set after the other.

    Args:
        photo_sets: instance photos, and class images if there are any.
        process: draws noise and times.
        seed: the run's seed.
        positions: 0, 1, 2, …
    """
    examples, conditions = [], []
    for photo_set in photo_sets:
        draws = [photo_set.draw(seed, position) for position in positions]
        for draw in draws:
            latent = photo_set.latent(draw)
            noise, time = process.draw(latent.values, draw.generator)
            examples.append(Example(latent, noise, time))
        conditions.append(photo_set.conditions(draws))
    return make_batches(examples, Conditions.cat(conditions))
