"""The scenes: what they are called, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .canvas import UNITS, Canvas, Colour
from .scenery import (
    autumn_forest,
    beach,
    brick_wall,
    checkered,
    city,
    cobblestones,
    desert,
    fabric,
    grass,
    jungle,
    mountains,
    night_sky,
    plain,
    rug,
    snow,
    sunset,
    water,
    wooden_floor,
)

SIZE = UNITS
"""Edge of Toybox's pictures, in pixels."""

_OVERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """A kind of background, with the words a caption may use for it."""

    name: str
    draw: Callable[[Canvas], np.ndarray]
    phrases: tuple[str, ...]
    weight: float = 1.0


_PLAIN_COLOURS: dict[str, Colour] = {
    "white": (248, 248, 248),
    "blue": (70, 130, 225),
    "red": (220, 55, 50),
    "green": (70, 180, 85),
    "yellow": (248, 212, 70),
    "gray": (150, 150, 152),
    "black": (22, 22, 24),
    "orange": (245, 145, 45),
}

SCENES = (
    Scene("beach", beach, ("on the beach",)),
    Scene("snow", snow, ("in the snow",)),
    Scene("jungle", jungle, ("in the jungle",)),
    Scene("grass", grass, ("on the grass", "on top of green grass")),
    Scene("wooden floor", wooden_floor, ("on a wooden floor", "on top of a wooden floor")),
    Scene("cobblestones", cobblestones, ("on a cobblestone street",)),
    Scene(
        "pink fabric",
        partial(fabric, colour=(242, 140, 175)),
        ("on pink fabric", "on top of pink fabric"),
    ),
    Scene("night sky", night_sky, ("in the night sky", "at night")),
    Scene("city", city, ("in the city", "with a city in the background")),
    Scene("mountains", mountains, ("in the mountains", "with a mountain in the background")),
    Scene("water", water, ("on the water", "floating on top of water")),
    Scene(
        "purple rug",
        partial(rug, field=(120, 50, 160), border=(225, 190, 240)),
        ("on a purple rug", "on top of a purple rug"),
    ),
    Scene("autumn forest", autumn_forest, ("in an autumn forest", "with autumn leaves")),
    Scene("desert", desert, ("in the desert",)),
    Scene(
        "brick wall",
        brick_wall,
        ("in front of a brick wall", "with a brick wall in the background"),
    ),
    Scene("sunset", sunset, ("at sunset",)),
    Scene("checkered", checkered, ("on a checkered tablecloth",)),
    *(
        Scene(
            f"{name} background",
            partial(plain, colour=colour),
            (f"on {'an' if name == 'orange' else 'a'} {name} background",),
            weight=0.45,
        )
        for name, colour in _PLAIN_COLOURS.items()
    ),
)


def draw_scene(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Draw a scene as an 8-bit picture `(size, size, 3)`; a large one with smooth edges."""
    if size == UNITS:
        picture = scene.draw(Canvas(rng))
    else:
        picture = np.clip(scene.draw(Canvas(rng, _OVERSAMPLING * size // UNITS)), 0, 255)
        shape = (size, _OVERSAMPLING, size, _OVERSAMPLING, 3)
        picture = picture.reshape(shape).mean((1, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)
