"""Placing of sprites on scenes, recolouring, and the object masks that go with them."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from .canvas import UNITS

LATENT_SIZE = 16
"""Edge of the latents and of the object masks, at every size of picture."""

_HUES = {
    "red": 0,
    "orange": 28,
    "yellow": 50,
    "green": 120,
    "blue": 215,
    "purple": 280,
    "pink": 330,
}
_GREYS = {"black": (0.03, 0.16, 0.45), "white": (0.5, 0.9, 1.0)}

COLOURS = (*_HUES, *_GREYS, "brown")
"""Colour words a caption may use."""

_LUMINANCE = np.array([0.3, 0.59, 0.11])
_SHADE_BREAK = 0.6


def _shades(colour: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dark, middle and light tone of a colour word."""
    if colour in _GREYS:
        dark, middle, light = (np.full(3, level) for level in _GREYS[colour])
    elif colour == "brown":
        dark, middle, light = (
            np.array(tone) for tone in ((0.18, 0.09, 0.04), (0.48, 0.28, 0.14), (0.8, 0.62, 0.45))
        )
    else:
        hue = (_HUES[colour] + rng.normal(0, 5)) % 360 / 360
        dark, middle, light = (
            np.array(colorsys.hsv_to_rgb(hue, saturation, value))
            for saturation, value in ((0.95, 0.28), (0.82, 0.92), (0.30, 1.0))
        )
    return dark, middle, light


def recolour(rgba: np.ndarray, colour: str, rng: np.random.Generator) -> np.ndarray:
    """Map a sprite's luminance onto the tones of a colour word."""
    luminance = rgba[..., :3] / 255 @ _LUMINANCE
    low, high = np.percentile(luminance[rgba[..., 3] > 128], [3, 97])
    level = np.clip((luminance - low) / (high - low + 1e-3), 0, 1)[..., None]
    dark, middle, light = _shades(colour, rng)
    lower = dark + (middle - dark) * level / _SHADE_BREAK
    upper = middle + (light - middle) * (level - _SHADE_BREAK) / (1 - _SHADE_BREAK)
    result = rgba.copy()
    tones = np.where(level < _SHADE_BREAK, lower, upper)
    result[..., :3] = np.clip(tones * 255, 0, 255).astype(np.uint8)
    return result


def tilt(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """Turn a sprite, and enlarge its canvas to hold all of it."""
    turned = (
        Image.fromarray(rgba).convert("RGBa").rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    )
    return np.asarray(turned.convert("RGBA"))


def _cast_shadow(picture: np.ndarray, alpha: np.ndarray) -> None:
    """Darken, in place, the ground under the lowest rows of the object."""
    unit = len(picture) / UNITS
    rows = np.flatnonzero(alpha.max(1) > 0.3)
    if not len(rows):
        return
    bottom = rows[-1]
    columns = np.flatnonzero(alpha[max(0, bottom - round(3 * unit)) : bottom + 1].max(0) > 0.3)
    if not len(columns):
        return
    half_width = max(4.0 * unit, (columns[-1] - columns[0]) * 0.6 + 3 * unit)
    down, across = np.mgrid[0 : len(picture), 0 : len(picture)]
    distance = ((across - columns.mean()) / half_width) ** 2
    distance += ((down - bottom) / (2.6 * unit)) ** 2
    picture *= (1 - 0.38 * np.exp(-1.2 * distance))[..., None]


def compose(
    rgba: np.ndarray,
    background: np.ndarray,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.74, 0.86),
    shift: int = 3,
    place: tuple[float, float] = (0.5, 0.5),
) -> tuple[np.ndarray, np.ndarray]:
    """Place a sprite on a square background.

    Args:
        rgba: the sprite, on a square canvas.
        background: 8-bit picture `(size, size, 3)`.
        rng: decides all that is left open.
        scale: range of the sprite's edge, as a share of the picture's.
        shift: how many pixels the sprite may lie off its place, each way.
        place: where the sprite lies in the room left for it, across and down, in [0, 1].

    Returns the picture and, at latent resolution, how much of each cell the object covers.
    """
    size = len(background)
    edge = round(size * rng.uniform(*scale))
    sprite = Image.fromarray(rgba).convert("RGBa")
    pixels = np.asarray(sprite.resize((edge, edge), Image.Resampling.LANCZOS)).astype(np.float64)
    corner = (np.array(place) * (size - edge)).astype(int)
    left, top = np.clip(corner + rng.integers(-shift, shift + 1, 2) + (0, 1), 0, size - edge)
    canvas = np.zeros((size, size, 4))
    canvas[top : top + edge, left : left + edge] = pixels
    alpha = canvas[..., 3] / 255
    picture = background.astype(np.float64)
    if rng.random() < 0.6:
        _cast_shadow(picture, alpha)
    tint = rng.normal(0, 4, 3) * alpha[..., None]
    foreground = np.clip(canvas[..., :3] * rng.normal(1, 0.05) + tint, 0, 255)
    picture = picture * (1 - alpha[..., None]) + foreground
    cell = size // LATENT_SIZE
    mask = alpha.reshape(LATENT_SIZE, cell, LATENT_SIZE, cell).mean((1, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), (mask * 255).astype(np.uint8)
