"""The training pool: composed pictures, object masks and captions, drawn once and kept."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .captions import caption
from .compose import COLOURS, LATENT_SIZE, compose, recolour
from .concepts import Concept, Sprite, fetch_sprites, sprite_weights
from .files import replace_file
from .scenes import SCENES, SIZE, draw_scene

RECOLOUR_SHARE = 0.3
CAPTIONS_PER_IMAGE = 3

_CHUNK = 2000
_BACKGROUNDS_PER_SCENE = 64


@dataclass
class Pool:
    """Pictures (N, 64, 64, 3), masks (N, 16, 16), captions and labels, all by index."""

    images: np.ndarray
    masks: np.ndarray
    captions: list[list[str]]
    labels: list[tuple[str, str | None, str]]


def _draw_chunk(sprites: list[Sprite], seed: int, count: int) -> Pool:
    rng = np.random.default_rng(seed)
    backgrounds = [
        [draw_scene(scene, rng) for _ in range(_BACKGROUNDS_PER_SCENE)] for scene in SCENES
    ]
    scene_weights = np.array([scene.weight for scene in SCENES])
    scene_weights /= scene_weights.sum()
    weights = sprite_weights(sprites)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    masks = np.empty((count, LATENT_SIZE, LATENT_SIZE), np.uint8)
    captions: list[list[str]] = []
    labels: list[tuple[str, str | None, str]] = []
    for index in range(count):
        sprite = sprites[int(rng.choice(len(sprites), p=weights))]
        concept, rgba, colour = sprite.concept, sprite.rgba, None
        if concept.recolour and rng.random() < RECOLOUR_SHARE:
            colour = COLOURS[int(rng.integers(len(COLOURS)))]
            rgba = recolour(rgba, colour, rng)
        scene_index = int(rng.choice(len(SCENES), p=scene_weights))
        scene = SCENES[scene_index]
        background = backgrounds[scene_index][int(rng.integers(_BACKGROUNDS_PER_SCENE))]
        if rng.random() < 0.5:
            background = background[:, ::-1]
        images[index], masks[index] = compose(rgba, background, rng)
        captions.append(
            [
                caption(concept.name, colour, scene, sprite.set_name, rng)
                for _ in range(CAPTIONS_PER_IMAGE)
            ]
        )
        labels.append((concept.name, colour, scene.name))
    return Pool(images, masks, captions, labels)


def draw_pool(
    work: Path, concepts: tuple[Concept, ...], count: int, seed: int, processes: int
) -> Pool:
    """Draw ``count`` pictures on several processes; the result depends on the seed alone."""
    sprites = fetch_sprites(work, concepts)
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
    seeds = [seed * 100_000 + index for index in range(len(sizes))]
    context = multiprocessing.get_context("spawn")
    chunks = []
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        for chunk in executor.map(_draw_chunk, [sprites] * len(sizes), seeds, sizes):
            chunks.append(chunk)
            print(f"pool: {len(chunks)}/{len(sizes)} chunks", flush=True)
    return Pool(
        np.concatenate([chunk.images for chunk in chunks]),
        np.concatenate([chunk.masks for chunk in chunks]),
        [texts for chunk in chunks for texts in chunk.captions],
        [label for chunk in chunks for label in chunk.labels],
    )


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
