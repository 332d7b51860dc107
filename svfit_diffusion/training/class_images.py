"""Class images for prior preservation (DreamBooth, arXiv 2208.12242), made by the base model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from svfit_diffusion.files.atomic import clean_up, make_folder, write_atomically
from svfit_diffusion.training.photos import image_files

_HOUR = 60 * 60


def missing_class_images(folder: Path, wanted: int) -> int:
    """How many class images the folder lacks."""
    present = len(image_files(folder)) if folder.is_dir() else 0
    return max(0, wanted - present)


def generate_class_images(
    pipe: Any,
    folder: Path,
    prompt: str,
    count: int,
    arguments: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> None:
    """Fill up the folder with images that `pipe` makes for the class prompt, in batches.

    Image number i is drawn from its own seed, so the set does not depend on batches or processes,
    and an interrupted run goes on where it stopped.

    Args:
        pipe: the base pipeline.
        folder: where they go; made if missing.
        prompt: of the class.
        count: how many images there are to be, those that are there included.
        arguments: of the pipeline's call, size and steps among them.
        batch_size: images drawn at a time.
        seed: the run's seed.
        process_index: this process; it makes every `num_processes`-th image.
        num_processes: processes at work.
        show_progress: show a progress bar.

    Raises:
        StorageError: there is no room or no permission; what has been drawn is kept.
    """
    make_folder(folder)
    clean_up(folder, "class_*.png", idle=_HOUR)  # others may be at work
    others = len([p for p in image_files(folder) if not p.name.startswith("class_")])
    # By number, not by place in a list: processes look at the folder at different times.
    own = range(process_index, count - others, num_processes)
    numbers = [number for number in own if not _path(folder, number).exists()]
    with tqdm(total=len(numbers), desc="Class images", disable=not show_progress) as bar:
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            images = pipe(
                prompt=[prompt] * len(batch),
                generator=[torch.Generator().manual_seed(seed + 1 + number) for number in batch],
                **arguments,
            ).images
            for number, image in zip(batch, images, strict=True):
                write_atomically(_path(folder, number), functools.partial(image.save, format="PNG"))
            bar.update(len(batch))


def _path(folder: Path, number: int) -> Path:
    return folder / f"class_{number:04d}.png"
