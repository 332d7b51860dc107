"""Designs between the designs: sprites of other hues, proportions and outlines."""

from __future__ import annotations

import numpy as np
from PIL import Image

_HUE_SHARE = 0.75
_CELLS = 4
"""Cells of the net that bends a sprite, each way."""
_BEND = 0.07
_STRETCH = 0.28


def vary(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another design of the same thing: hues turned, stretched one way, and bent a little.

    Without it a base knows a few designs by heart and nothing between them, and a subject, which is
    always another one, comes out as a smear.
    """
    return bend(other_hues(rgba, rng) if rng.random() < _HUE_SHARE else rgba, rng)


def other_hues(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All hues turned by one angle, saturation and brightness changed."""
    hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).astype(np.float64)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 256)) % 256
    hsv[..., 1] *= rng.uniform(0.4, 1.2)
    # A power: black lines stay black, white eyes white.
    hsv[..., 2] = 255 * (hsv[..., 2] / 255) ** rng.uniform(0.7, 1.5)
    pixels = np.clip(hsv, 0, 255).astype(np.uint8)
    result = rgba.copy()
    result[..., :3] = np.asarray(Image.fromarray(pixels, "HSV").convert("RGB"))
    return result


def bend(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sprite on a net whose knots are moved, on a canvas of the same size."""
    edge = len(rgba)
    wide, high = 1 + np.abs(rng.uniform(0, _STRETCH)) * np.array(
        [(1, 0), (0, 1)][int(rng.integers(2))]
    )
    line = np.linspace(0, edge, _CELLS + 1)
    across, down = np.meshgrid((line - edge / 2) * wide, (line - edge / 2) * high)
    # Sources of the knots: beyond the canvas there is nothing, so that stretching shrinks.
    knots = np.stack([across, down], -1) + edge / 2
    knots += rng.uniform(-_BEND, _BEND, knots.shape) * edge
    net = [
        (
            (round(line[j]), round(line[i]), round(line[j + 1]), round(line[i + 1])),
            tuple(
                float(value)
                for corner in (knots[i, j], knots[i + 1, j], knots[i + 1, j + 1], knots[i, j + 1])
                for value in corner
            ),
        )
        for i in range(_CELLS)
        for j in range(_CELLS)
    ]
    bent = Image.fromarray(rgba).convert("RGBa")
    bent = bent.transform(bent.size, Image.Transform.MESH, net, Image.Resampling.BICUBIC)
    return np.asarray(bent.convert("RGBA"))
