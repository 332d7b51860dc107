"""What Toybox-Flow is shown: the things and scenes of Toybox, larger, and in more ways."""

from __future__ import annotations

from pathlib import Path

from .art import FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI
from .concepts import CONCEPTS, in_all_sets
from .pool import Pool, Recipe, draw_parts, join, load_pool, save_pool

FLOW_SIZE = 128
"""Edge of Toybox-Flow's pictures, in pixels."""

FLOW_CONCEPTS = in_all_sets(CONCEPTS)

FLOW_RECIPE = Recipe(
    size=FLOW_SIZE,
    sprite_size=256,
    scale=(0.64, 0.88),
    shift=7,
    backgrounds=24,
    set_weights=(
        (FLUENT_3D.name, 2.4),
        (FLUENT_FLAT.name, 0.6),
        (NOTO.name, 1.0),
        (TWEMOJI.name, 0.6),
    ),
    tilted=0.25,
    accompanied=0.1,
    varied=0.6,
    telling=True,
)


PART = 2000
"""Pictures in one part of the pool."""

_SEED = 21 * 100_000
_JUDGED_SEED = 11 * 100_000


def part_folders(work: Path) -> list[Path]:
    """The finished parts of the pool, in the order they were drawn."""
    return sorted(path.parent for path in (work / "pool").glob("*/text.json"))


def draw_flow_pool(
    work: Path, parts: int, processes: int, recipe: Recipe = FLOW_RECIPE, size: int = PART
) -> None:
    """Compose the parts that are missing; each is a folder by itself, of use once it is there."""
    folders = [work / "pool" / f"{number:03d}" for number in range(parts)]
    wanted = {
        _SEED + number: size
        for number, folder in enumerate(folders)
        if not (folder / "text.json").exists()
    }
    for seed, part in draw_parts(work, FLOW_CONCEPTS, wanted, processes, recipe):
        save_pool(part, folders[seed - _SEED])


def load_flow_pool(work: Path, parts: int) -> Pool:
    """The first parts, last one first, so that the pictures held back are always the same."""
    return join([load_pool(folder) for folder in part_folders(work)[:parts][::-1]])


def draw_judged_pool(
    work: Path, processes: int, recipe: Recipe = FLOW_RECIPE, count: int = 9000
) -> Pool:
    """Pictures that no training saw, for the judges to be fitted on."""
    parts = range(-(-count // PART))
    counts = {_JUDGED_SEED + part: min(PART, count - part * PART) for part in parts}
    return join([pool for _, pool in draw_parts(work, FLOW_CONCEPTS, counts, processes, recipe)])
