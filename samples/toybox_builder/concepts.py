"""What the base model can draw: concepts, their art, and which of them may be recoloured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .art import FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI, ArtLibrary, ArtSet

ALL_SETS = (FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI)
SET_WEIGHTS = {FLUENT_3D.name: 1.6, FLUENT_FLAT.name: 1.0, NOTO.name: 1.0, TWEMOJI.name: 0.8}
"""How often the sprites of each set are drawn, relative to each other."""

ONE_SIDED = frozenset({"book", "clock", "watch", "globe", "dice", "guitar", "television"})
"""Things that look wrong in a mirror."""


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

CORE_CONCEPTS = (
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


WIDE_CONCEPTS = (
    Concept("tiger", "tiger", _FLUENT, recolour=False),
    Concept("lion", "lion", _FLUENT, recolour=False),
    Concept("fox", "fox", _FLUENT, recolour=False),
    Concept("panda", "panda", _FLUENT, recolour=False),
    Concept("koala", "koala", _FLUENT, recolour=False),
    Concept("unicorn", "unicorn", _FLUENT, recolour=False),
    Concept("zebra", "zebra", _FLUENT, recolour=False),
    Concept("giraffe", "giraffe", _FLUENT, recolour=False),
    Concept("squirrel", "chipmunk", _FLUENT, recolour=False),
    Concept("hedgehog", "hedgehog", _FLUENT, recolour=False),
    Concept("monkey", "monkey", _FLUENT, recolour=False),
    Concept("chick", "baby-chick", _FLUENT, recolour=False),
    Concept("swan", "swan", _FLUENT, recolour=False),
    Concept("flamingo", "flamingo", _FLUENT, recolour=False),
    Concept("parrot", "parrot", _FLUENT, recolour=False),
    Concept("dinosaur", "sauropod", _FLUENT, recolour=False),
    Concept("whale", "whale", _FLUENT, recolour=False),
    Concept("octopus", "octopus", _FLUENT, recolour=False),
    Concept("snail", "snail", _FLUENT, recolour=False),
    Concept("ladybug", "lady-beetle", _FLUENT, recolour=False),
    Concept("bee", "honeybee", _FLUENT, recolour=False),
    Concept("rose", "rose", _FLUENT, recolour=False),
    Concept("tulip", "tulip", _FLUENT, recolour=False),
    Concept("cherry blossom", "cherry-blossom", _FLUENT, recolour=False),
    Concept("palm tree", "palm-tree", _FLUENT, recolour=False),
    Concept("tree", "deciduous-tree", _FLUENT, recolour=False),
    Concept("maple leaf", "maple-leaf", _FLUENT, recolour=False),
    Concept("grapes", "grapes", _FLUENT, recolour=False),
    Concept("watermelon", "watermelon", _FLUENT, recolour=False),
    Concept("tangerine", "tangerine", _FLUENT, recolour=False),
    Concept("lemon", "lemon", _FLUENT, recolour=False),
    Concept("banana", "banana", _FLUENT, recolour=False),
    Concept("pineapple", "pineapple", _FLUENT, recolour=False),
    Concept("pear", "pear", _FLUENT, recolour=False),
    Concept("peach", "peach", _FLUENT, recolour=False),
    Concept("cherries", "cherries", _FLUENT, recolour=False),
    Concept("blueberries", "blueberries", _FLUENT, recolour=False),
    Concept("kiwi", "kiwi-fruit", _FLUENT, recolour=False),
    Concept("tomato", "tomato", _FLUENT, recolour=False),
    Concept("avocado", "avocado", _FLUENT, recolour=False),
    Concept("eggplant", "eggplant", _FLUENT, recolour=False),
    Concept("carrot", "carrot", _FLUENT, recolour=False),
    Concept("corn", "ear-of-corn", _FLUENT, recolour=False),
    Concept("broccoli", "broccoli", _FLUENT, recolour=False),
    Concept("bread", "bread", _FLUENT, recolour=False),
    Concept("croissant", "croissant", _FLUENT, recolour=False),
    Concept("pretzel", "pretzel", _FLUENT, recolour=False),
    Concept("pancakes", "pancakes", _FLUENT, recolour=False),
    Concept("cheese", "cheese-wedge", _FLUENT, recolour=False),
    Concept("french fries", "french-fries", _FLUENT, recolour=False),
    Concept("pizza", "pizza", _FLUENT, recolour=False),
    Concept("hot dog", "hot-dog", _FLUENT, recolour=False),
    Concept("taco", "taco", _FLUENT, recolour=False),
    Concept("egg", "egg", _FLUENT, recolour=False),
    Concept("popcorn", "popcorn", _FLUENT, recolour=False),
    Concept("ice cream", "ice-cream", _FLUENT, recolour=False),
    Concept("cookie", "cookie", _FLUENT, recolour=False),
    Concept("cupcake", "cupcake", _FLUENT, recolour=False),
    Concept("chocolate bar", "chocolate-bar", _FLUENT, recolour=False),
    Concept("candy", "candy", _FLUENT, recolour=False),
    Concept("lollipop", "lollipop", _FLUENT, recolour=False),
    Concept("honey pot", "honey-pot", _FLUENT, recolour=False),
    Concept("beer mug", "beer-mug", _FLUENT, recolour=False),
    Concept("castle", "castle", _FLUENT, recolour=False),
    Concept("tent", "tent", _FLUENT, recolour=False),
    Concept("train", "locomotive", _FLUENT, recolour=False),
    Concept("fire truck", "fire-engine", _FLUENT, recolour=False),
    Concept("taxi", "taxi", _FLUENT, recolour=False),
    Concept("sailboat", "sailboat", _FLUENT, recolour=False),
    Concept("flying saucer", "flying-saucer", _FLUENT, recolour=False),
    Concept("anchor", "anchor", _FLUENT, recolour=False),
    Concept("watch", "watch", _FLUENT, recolour=False),
    Concept("snowman", "snowman", _FLUENT, recolour=False),
    Concept("jack o lantern", "jack-o-lantern", _FLUENT, recolour=False),
    Concept("christmas tree", "christmas-tree", _FLUENT, recolour=False),
    Concept("balloon", "balloon", _FLUENT),
    Concept("trophy", "trophy", _FLUENT, recolour=False),
    Concept("soccer ball", "soccer-ball", _FLUENT, recolour=False),
    Concept("basketball", "basketball", _FLUENT, recolour=False),
    Concept("football", "american-football", _FLUENT, recolour=False),
    Concept("baseball", "baseball", _FLUENT, recolour=False),
    Concept("crystal ball", "crystal-ball", _FLUENT, recolour=False),
    Concept("dice", "game-die", _FLUENT, recolour=False),
    Concept("yarn", "yarn", _FLUENT, recolour=False),
    Concept("boxing glove", "boxing-glove", _FLUENT, recolour=False),
    Concept("shirt", "t-shirt", _FLUENT),
    Concept("jeans", "jeans", _FLUENT, recolour=False),
    Concept("dress", "dress", _FLUENT),
    Concept("purse", "purse", _FLUENT, recolour=False),
    Concept("crown", "crown", _FLUENT, recolour=False),
    Concept("hat", "womans-hat", _FLUENT, recolour=False),
    Concept("cap", "billed-cap", _FLUENT),
    Concept("gem", "gem-stone", _FLUENT, recolour=False),
    Concept("bell", "bell", _FLUENT, recolour=False),
    Concept("drum", "drum", _FLUENT, recolour=False),
    Concept("telephone", "telephone", _FLUENT, recolour=False),
    Concept("laptop", "laptop", _FLUENT, recolour=False),
    Concept("television", "television", _FLUENT, recolour=False),
    Concept("camera", "camera", _FLUENT, recolour=False),
    Concept("light bulb", "light-bulb", _FLUENT, recolour=False),
    Concept("lantern", "red-paper-lantern", _FLUENT, recolour=False),
    Concept("envelope", "envelope", _FLUENT, recolour=False),
    Concept("box", "package", _FLUENT, recolour=False),
    Concept("briefcase", "briefcase", _FLUENT, recolour=False),
    Concept("lock", "locked", _FLUENT, recolour=False),
    Concept("shield", "shield", _FLUENT, recolour=False),
    Concept("magnet", "magnet", _FLUENT, recolour=False),
    Concept("bucket", "bucket", _FLUENT),
    Concept("chair", "chair", _FLUENT, recolour=False),
    Concept("door", "door", _FLUENT, recolour=False),
    Concept("basket", "basket", _FLUENT, recolour=False),
    Concept("alien", "alien", _FLUENT, recolour=False),
    Concept("globe", "globe-showing-americas", _FLUENT, recolour=False),
)
"""Learned after the core ones, each in one design that two sets share."""

CONCEPTS = (*CORE_CONCEPTS, *WIDE_CONCEPTS)


def in_all_sets(concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """The same things in the designs of every set, alike or not."""
    return tuple(replace(concept, sets=ALL_SETS) for concept in concepts)


def load_sprites(library: ArtLibrary, concepts: tuple[Concept, ...]) -> list[Sprite]:
    """Render every sprite of the concepts, in a fixed order."""
    sprites = []
    for concept in concepts:
        for art_set in concept.sets:
            rgba = library.sprite(art_set, concept.icon)
            if rgba is None:
                raise LookupError(f"{art_set.package} has no icon {concept.icon!r}")
            sprites.append(Sprite(concept, art_set.name, rgba))
    return sprites


def sprite_weights(sprites: list[Sprite], by_set: dict[str, float]) -> np.ndarray:
    """Probability of each sprite: by concept first, then by set within the concept."""
    weights = np.array([by_set[sprite.set_name] for sprite in sprites])
    totals: dict[str, float] = {}
    for sprite, weight in zip(sprites, weights, strict=True):
        totals[sprite.concept.name] = totals.get(sprite.concept.name, 0.0) + float(weight)
    shares = [sprite.concept.weight / totals[sprite.concept.name] for sprite in sprites]
    weights = weights * np.array(shares)
    return weights / weights.sum()


def fetch_sprites(work: Path, concepts: tuple[Concept, ...], size: int) -> list[Sprite]:
    """Render the sprites, ``size`` pixels wide, from the archives under the working folder."""
    return load_sprites(ArtLibrary(work / "npm", size), concepts)
