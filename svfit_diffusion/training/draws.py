"""What chance decides in training, as a pure function of seed and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draw:
    """The random choices of one training example, a pure function of seed and position.

    Attributes:
        index: which photo.
        flip: mirror it.
        crop: where the square lies, see `crops.cut`.
        generator: for the noise that follows.
        drop: in 0..1; below the share of empty prompts, the prompt is left out.
    """

    index: int
    flip: bool
    crop: tuple[float, float]
    generator: torch.Generator
    drop: float


def draw_example(seed: int, position: int, photo_count: int, stream: int = 0) -> Draw:
    """What chance decides for the example at `position` of the endless training stream.

    Every photo comes once per epoch, in an order drawn anew for each. Because nothing depends on
    what was drawn before, a run can be resumed at any step, and split over any number of
    processes, without changing it.

    Args:
        seed: the run's seed.
        position: 0, 1, 2, …
        photo_count: photos to choose from.
        stream: 0 for instance photos, 1 for class images: independent of each other.
    """
    epoch, place = divmod(position, photo_count)
    order = torch.randperm(photo_count, generator=_generator(seed, stream, 0, epoch))
    generator = _generator(seed, stream, 1, position)
    flip, x, y = torch.rand(3, generator=generator).tolist()
    drop = float(torch.rand((), generator=_generator(seed, stream, 2, position)))
    return Draw(int(order[place]), flip < 0.5, (x, y), generator, drop)


def _generator(*key: int) -> torch.Generator:
    # torch's CPU generator takes 32 bits of seed; hash the key into them evenly.
    value = 0
    for part in key:
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**64
        value ^= value >> 32
    return torch.Generator().manual_seed(value % 2**32)
