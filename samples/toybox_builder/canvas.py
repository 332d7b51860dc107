"""What the scenes are drawn on: a square of any size, with its colours, noises and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]

UNITS = 64
"""Edge of every canvas in units; scenes are laid out in these."""


@dataclass(frozen=True)
class Canvas:
    """A square of `UNITS * unit` pixels, drawn with numbers from one random generator."""

    rng: np.random.Generator
    unit: int = 1

    @property
    def edge(self) -> int:
        """Edge in pixels."""
        return UNITS * self.unit

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of every pixel, in units, `(edge, edge)`."""
        return np.mgrid[0 : self.edge, 0 : self.edge][0] / self.unit

    @cached_property
    def columns(self) -> np.ndarray:
        """Column of every pixel, in units, `(edge, edge)`."""
        return np.mgrid[0 : self.edge, 0 : self.edge][1] / self.unit

    def length(self, low: int, high: int) -> int:
        """A random whole number of units from `low` up to, but not with, `high`, in pixels."""
        return int(self.rng.integers(low, high)) * self.unit

    def jitter(self, colour: Colour, spread: float = 10.0) -> np.ndarray:
        """A colour near another."""
        return np.clip(np.array(colour) + self.rng.normal(0, spread, 3), 0, 255)

    def fill(self, colour: Colour, spread: float = 10.0) -> tuple[int, int, int]:
        """A colour near another, as Pillow wants it."""
        red, green, blue = self.jitter(colour, spread)
        return int(red), int(green), int(blue)

    def noise(self, cell: int) -> np.ndarray:
        """Smooth noise with features about ``cell`` units wide."""
        edge = max(2, UNITS // cell + 1)
        coarse = self.rng.standard_normal((edge, edge)).astype(np.float32)
        size = (self.edge, self.edge)
        return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))

    def grain(self, strength: float) -> np.ndarray:
        """Noise of every pixel on its own, `(edge, edge, 1)`."""
        return self.rng.standard_normal((self.edge, self.edge, 1)) * strength

    def gradient(self, top: np.ndarray, bottom: np.ndarray, rows: int | None = None) -> np.ndarray:
        """From one colour to another, downwards."""
        ramp = np.linspace(0, 1, self.edge if rows is None else rows)[:, None, None]
        return np.repeat((1 - ramp) * top + ramp * bottom, self.edge, axis=1)

    def texture(self, colour: np.ndarray, cell: int, coarse: float, fine: float) -> np.ndarray:
        """A colour with smooth and fine noise."""
        grain = self.noise(cell)[..., None] * coarse + self.grain(fine)
        return colour + grain

    def sky(self, rows: int | None = None) -> np.ndarray:
        """The blue of a day, of some height in pixels."""
        top, bottom = self.jitter((110, 170, 235)), self.jitter((190, 220, 245))
        return self.gradient(top, bottom, rows)


def as_image(picture: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture to draw on with Pillow."""
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def as_array(image: Image.Image) -> np.ndarray:
    """What was drawn with Pillow, for arithmetic."""
    return np.asarray(image).astype(np.float64)
