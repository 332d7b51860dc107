"""The training pool: composed pictures, object masks and captions, drawn once and kept."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .captions import NONSENSE_SHARE, caption
from .compose import COLOURS, LATENT_SIZE, compose, recolour, tilt
from .concepts import SET_WEIGHTS, Concept, Sprite, fetch_sprites, sprite_weights
from .files import replace_file
from .scenes import SCENES, SIZE, draw_scene
from .variation import vary

RECOLOUR_SHARE = 0.3
CAPTIONS_PER_IMAGE = 3
VARIED_NAMED_SHARE = 0.8
"""How often another design of a thing has a name: a nonsense word, as a subject will have."""

_CHUNK = 2000


@dataclass(frozen=True)
class Recipe:
    """How pictures are composed.

    Attributes:
        size: edge of the pictures, in pixels.
        sprite_size: edge of the sprites before they are scaled, in pixels.
        scale: range of a sprite's edge, as a share of the picture's.
        shift: pixels that a sprite may lie off the middle, each way.
        backgrounds: drawings of every scene to choose from, in each chunk of the pool.
        set_weights: how often each art set is drawn from.
        tilted, accompanied: shares of the pictures whose thing is turned by some degrees, has
            another thing beside it.
        varied: share of the pictures that show another design of the thing than the art's.
        telling: captions tell the art sets apart.
    """

    size: int = SIZE
    sprite_size: int = 128
    scale: tuple[float, float] = (0.74, 0.86)
    shift: int = 3
    backgrounds: int = 64
    set_weights: tuple[tuple[str, float], ...] = tuple(SET_WEIGHTS.items())
    tilted: float = 0.0
    accompanied: float = 0.0
    varied: float = 0.0
    telling: bool = False


TOYBOX = Recipe()


@dataclass
class Pool:
    """Pictures (N, size, size, 3), masks (N, 16, 16), captions and labels, all by index."""

    images: np.ndarray
    masks: np.ndarray
    captions: list[list[str]]
    labels: list[tuple[str, str | None, str]]


class _Composer:
    """Draws the pictures of one chunk."""

    _TILT = 9.0
    _WITH_COMPANION = (0.58, 0.7)
    _COMPANION = (0.32, 0.42)

    def __init__(self, sprites: list[Sprite], recipe: Recipe, rng: np.random.Generator) -> None:
        self._sprites, self._recipe, self._rng = sprites, recipe, rng
        self._weights = sprite_weights(sprites, dict(recipe.set_weights))
        self._backgrounds = [
            [draw_scene(scene, rng, recipe.size) for _ in range(recipe.backgrounds)]
            for scene in SCENES
        ]
        scene_weights = np.array([scene.weight for scene in SCENES])
        self._scene_weights = scene_weights / scene_weights.sum()

    def draw(self) -> tuple[np.ndarray, np.ndarray, list[str], tuple[str, str | None, str]]:
        """A picture, the mask of its things, its captions and its labels."""
        rng, recipe = self._rng, self._recipe
        sprite = self._sprites[int(rng.choice(len(self._sprites), p=self._weights))]
        concept, named_share = sprite.concept, NONSENSE_SHARE
        if recipe.varied and rng.random() < recipe.varied:
            rgba, colour, named_share = vary(sprite.rgba, rng), None, VARIED_NAMED_SHARE
        else:
            rgba, colour = self._coloured(sprite, RECOLOUR_SHARE)
        scene_index = int(rng.choice(len(SCENES), p=self._scene_weights))
        scene = SCENES[scene_index]
        background = self._backgrounds[scene_index][int(rng.integers(recipe.backgrounds))]
        if rng.random() < 0.5:
            background = background[:, ::-1]
        rgba = self._turned(rgba)
        companion = None
        if recipe.accompanied and rng.random() < recipe.accompanied:
            image, mask, companion = self._pair(rgba, sprite, background)
        else:
            image, mask = compose(rgba, background, rng, recipe.scale, recipe.shift)
        captions = [
            caption(
                concept.name,
                colour,
                scene,
                sprite.set_name,
                rng,
                companion,
                recipe.telling,
                named_share,
            )
            for _ in range(CAPTIONS_PER_IMAGE)
        ]
        return image, mask, captions, (concept.name, colour, scene.name)

    def _coloured(self, sprite: Sprite, share: float) -> tuple[np.ndarray, str | None]:
        """The sprite, recoloured at times, and the name of its colour then."""
        if not (sprite.concept.recolour and self._rng.random() < share):
            return sprite.rgba, None
        colour = COLOURS[int(self._rng.integers(len(COLOURS)))]
        return recolour(sprite.rgba, colour, self._rng), colour

    def _turned(self, rgba: np.ndarray) -> np.ndarray:
        rng, recipe = self._rng, self._recipe
        if recipe.tilted and rng.random() < recipe.tilted:
            rgba = tilt(rgba, float(rng.uniform(-self._TILT, self._TILT)))
        return rgba

    def _pair(
        self, rgba: np.ndarray, sprite: Sprite, background: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """The thing to one side, and a small one of the same art before it on the other."""
        rng, shift = self._rng, self._recipe.shift
        kin = [
            other
            for other in self._sprites
            if other.set_name == sprite.set_name and other.concept is not sprite.concept
        ]
        other = kin[int(rng.integers(len(kin)))]
        beside, colour = self._coloured(other, 0.6)
        side = float(rng.integers(2))
        place = (0.15 + 0.7 * side, 0.5)
        image, mask = compose(rgba, background, rng, self._WITH_COMPANION, shift, place)
        place = (0.95 - 0.9 * side, 0.9)
        image, small = compose(beside, image, rng, self._COMPANION, shift, place)
        name = f"{colour} {other.concept.name}" if colour else other.concept.name
        return image, np.maximum(mask, small), name


def _draw_chunk(sprites: list[Sprite], recipe: Recipe, seed: int, count: int) -> Pool:
    composer = _Composer(sprites, recipe, np.random.default_rng(seed))
    images = np.empty((count, recipe.size, recipe.size, 3), np.uint8)
    masks = np.empty((count, LATENT_SIZE, LATENT_SIZE), np.uint8)
    captions: list[list[str]] = []
    labels: list[tuple[str, str | None, str]] = []
    for index in range(count):
        images[index], masks[index], texts, label = composer.draw()
        captions.append(texts)
        labels.append(label)
    return Pool(images, masks, captions, labels)


def draw_parts(
    work: Path,
    concepts: tuple[Concept, ...],
    counts: dict[int, int],
    processes: int,
    recipe: Recipe = TOYBOX,
) -> Iterator[tuple[int, Pool]]:
    """Draw parts of so many pictures, each by its own seed, on several processes, in order."""
    sprites = fetch_sprites(work, concepts, recipe.sprite_size)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        arguments = ([sprites] * len(counts), [recipe] * len(counts), counts, counts.values())
        for seed, part in zip(counts, executor.map(_draw_chunk, *arguments), strict=True):
            print(f"pool: {part.images.shape[0]} pictures by seed {seed}", flush=True)
            yield seed, part


def join(parts: Sequence[Pool]) -> Pool:
    """One pool of several."""
    return Pool(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.masks for part in parts]),
        [texts for part in parts for texts in part.captions],
        [label for part in parts for label in part.labels],
    )


def draw_pool(
    work: Path, concepts: tuple[Concept, ...], count: int, seed: int, processes: int
) -> Pool:
    """Draw ``count`` of Toybox's pictures; they depend on the seed alone."""
    starts = range(0, count, _CHUNK)
    counts = {seed * 100_000 + i: min(_CHUNK, count - s) for i, s in enumerate(starts)}
    return join([part for _, part in draw_parts(work, concepts, counts, processes)])


def save_pool(pool: Pool, folder: Path) -> None:
    """Write a pool; the text file comes last and marks it complete."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", pool.images)
    np.save(folder / "masks.npy", pool.masks)
    text = json.dumps({"captions": pool.captions, "labels": pool.labels})
    replace_file(folder / "text.json", text.encode())


def load_pool(folder: Path) -> Pool:
    """Read a pool that `save_pool` wrote."""
    text = json.loads((folder / "text.json").read_text())
    return Pool(
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "masks.npy"),
        text["captions"],
        [(concept, colour, scene) for concept, colour, scene in text["labels"]],
    )
