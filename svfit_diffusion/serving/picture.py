"""What decides a picture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

MAX_SEED = 2**32 - 1
SIDE_MULTIPLE = 8
"""Sides of pictures are multiples of this many pixels, as diffusers' pipelines want them."""


@dataclass(frozen=True)
class Picture:
    """A picture that is wanted.

    Attributes:
        prompt: what it shows.
        negative_prompt: what it should not show; without effect at a guidance of 1 or less.
        adapters: strength of each adapter by name; 0 is the base model, 1 as trained.
        steps: sampling steps.
        guidance_scale: how closely it follows the prompt; 1 is not at all pushed.
        width: in pixels.
        height: in pixels.
        seed: of its noise, 0 to 2³² − 1.
    """

    prompt: str
    negative_prompt: str
    adapters: Mapping[str, float]
    steps: int
    guidance_scale: float
    width: int
    height: int
    seed: int

    @property
    def common(self) -> Hashable:
        """What pictures must have in common to be drawn in one batch."""
        return (self.steps, self.guidance_scale, self.width, self.height)
