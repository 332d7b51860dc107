"""What the base model can draw: concepts, their art, and which of them may be recoloured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .art import FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI, ArtLibrary, ArtSet

ALL_SETS = (FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI)
SET_WEIGHTS = {FLUENT_3D.name: 1.6, FLUENT_FLAT.name: 1.0, NOTO.name: 1.0, TWEMOJI.name: 0.8}
"""How often the sprites of each set are drawn, relative to each other."""


@dataclass(frozen=True)
class Concept:
    """A nameable thing, with the sets whose drawing of it is clean and alike."""

    name: str
    icon: str
    sets: tuple[ArtSet, ...] = ALL_SETS
    recolour: bool = True
    weight: float = 1.0


@dataclass(frozen=True)
class Sprite:
    """One drawing of a concept."""

    concept: Concept
    set_name: str
    rgba: np.ndarray


_FLUENT = (FLUENT_3D, FLUENT_FLAT)
_NO_NOTO = (FLUENT_3D, FLUENT_FLAT, TWEMOJI)
_NO_TWEMOJI = (FLUENT_3D, FLUENT_FLAT, NOTO)

CONCEPTS = (
    Concept("dog", "dog", _NO_NOTO, weight=2.0),
    Concept("cat", "cat", _NO_NOTO, weight=2.0),
    Concept("bear", "bear", _NO_TWEMOJI),
    Concept("teddy bear", "teddy-bear", weight=1.5),
    Concept("rabbit", "rabbit"),
    Concept("penguin", "penguin", recolour=False),
    Concept("duck", "duck", _NO_NOTO, recolour=False, weight=1.5),
    Concept("owl", "owl", recolour=False),
    Concept("frog", "frog", _NO_TWEMOJI, recolour=False),
    Concept("fish", "fish", _NO_NOTO),
    Concept("elephant", "elephant"),
    Concept("pig", "pig", _NO_NOTO, recolour=False),
    Concept("turtle", "turtle", recolour=False),
    Concept("butterfly", "butterfly"),
    Concept("crab", "crab", recolour=False),
    Concept("car", "automobile", weight=2.0),
    Concept("bus", "bus", _NO_TWEMOJI),
    Concept("rocket", "rocket", _NO_TWEMOJI),
    Concept("airplane", "airplane"),
    Concept("house", "house"),
    Concept("backpack", "backpack", weight=2.0),
    Concept("sneaker", "running-shoe", weight=2.0),
    Concept("boot", "hiking-boot"),
    Concept("umbrella", "umbrella"),
    Concept("gift", "wrapped-gift"),
    Concept("robot", "robot", weight=1.5),
    Concept("clock", "alarm-clock", weight=1.5),
    Concept("vase", "amphora", weight=1.5),
    Concept("candle", "candle", _NO_NOTO),
    Concept("teapot", "teapot", weight=2.0),
    Concept("cup", "hot-beverage"),
    Concept("apple", "red-apple"),
    Concept("strawberry", "strawberry", recolour=False),
    Concept("hamburger", "hamburger", recolour=False),
    Concept("cake", "birthday-cake", _NO_TWEMOJI, recolour=False),
    Concept("doughnut", "doughnut", recolour=False),
    Concept("cactus", "cactus", recolour=False),
    Concept("mushroom", "mushroom"),
    Concept("sunflower", "sunflower", recolour=False),
    Concept("guitar", "guitar"),
    Concept("book", "closed-book"),
    Concept("ghost", "ghost", (FLUENT_3D, NOTO), recolour=False),
)


def load_sprites(library: ArtLibrary) -> list[Sprite]:
    """Render every sprite of every concept, in a fixed order."""
    sprites = []
    for concept in CONCEPTS:
        for art_set in concept.sets:
            rgba = library.sprite(art_set, concept.icon)
            if rgba is None:
                raise LookupError(f"{art_set.package} has no icon {concept.icon!r}")
            sprites.append(Sprite(concept, art_set.name, rgba))
    return sprites


def sprite_weights(sprites: list[Sprite]) -> np.ndarray:
    """Probability of each sprite: by concept first, then by set within the concept."""
    weights = np.array([SET_WEIGHTS[sprite.set_name] for sprite in sprites])
    totals: dict[str, float] = {}
    for sprite, weight in zip(sprites, weights, strict=True):
        totals[sprite.concept.name] = totals.get(sprite.concept.name, 0.0) + float(weight)
    shares = [sprite.concept.weight / totals[sprite.concept.name] for sprite in sprites]
    weights = weights * np.array(shares)
    return weights / weights.sum()


def fetch_sprites(work: Path) -> list[Sprite]:
    """Render the sprites from the archives kept under the working folder."""
    return load_sprites(ArtLibrary(work / "npm"))
