"""Class images for prior preservation (DreamBooth, arXiv 2208.12242), made by the base model.

A folder may be shared: the names of images that were drawn say for which prompt and base, and no
other run uses them. All others are the user's own, which every run uses.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from svfit_diffusion.files.atomic import clean_up, make_folder, write_atomically
from svfit_diffusion.training.captions import read_captions
from svfit_diffusion.training.folders import PhotoFile, look_into
from svfit_diffusion.training.photos import Photo, read_photos

_DRAWN = re.compile(r"class_([0-9a-f]{8})_\d{4,}\.png")
_HOUR = 60 * 60


def missing_class_images(folder: Path, prompt: str, base: str, wanted: int) -> int:
    """How many class images the folder lacks for a prompt and a base model."""
    return max(0, wanted - len(_files(folder, prompt, base)))


def class_photos(folder: Path, prompt: str, base: str, limit: int) -> list[Photo]:
    """The class images of a prompt and a base model, the user's own first.

    Raises:
        DataError: one cannot be read.
    """
    files = _files(folder, prompt, base)[:limit]
    return read_photos(files, read_captions(folder, [file.path for file in files]), prompt)


def generate_class_images(
    pipe: Any,
    folder: Path,
    prompt: str,
    count: int,
    arguments: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    base: str = "",
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> None:
    """Fill up the folder with images that `pipe` makes for the class prompt, in batches.

    Image number i is drawn from its own seed, so the set does not depend on batches or processes,
    and an interrupted run goes on where it stopped. Each holds its prompt, base and seed as text.

    Args:
        pipe: the base pipeline.
        folder: where they go; made if missing.
        prompt: of the class.
        count: how many images there are to be, the user's own and those that are there included.
        arguments: of the pipeline's call, size and steps among them.
        batch_size: images drawn at a time.
        seed: the run's seed.
        base: names the base model.
        process_index: this process; it makes every `num_processes`-th image.
        num_processes: processes at work.
        show_progress: show a progress bar.

    Raises:
        StorageError: there is no room or no permission; what has been drawn is kept.
    """
    make_folder(folder)
    clean_up(folder, "class_*.png", idle=_HOUR)  # others may be at work
    own = len(
        [file for file in _files(folder, prompt, base) if not _DRAWN.fullmatch(file.path.name)]
    )
    start = f"class_{_digest(prompt, base)}_"
    # By number, not by place in a list: processes look at the folder at different times.
    paths = {
        number: folder / f"{start}{number:04d}.png"
        for number in range(process_index, count - own, num_processes)
    }
    numbers = [number for number, path in paths.items() if not path.exists()]
    with tqdm(total=len(numbers), desc="Class images", disable=not show_progress) as bar:
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            images = pipe(
                prompt=[prompt] * len(batch),
                generator=[torch.Generator().manual_seed(seed + 1 + number) for number in batch],
                **arguments,
            ).images
            for number, image in zip(batch, images, strict=True):
                record = PngInfo()
                about = {"prompt": prompt, "base": base, "seed": seed + 1 + number}
                record.add_text("svfit", json.dumps(about))
                save = functools.partial(image.save, format="PNG", pnginfo=record)
                write_atomically(paths[number], save)
                bar.update()


def _files(folder: Path, prompt: str, base: str) -> list[PhotoFile]:
    """Images of a class, the user's own first."""
    files = look_into(folder)[0] if folder.is_dir() else []
    drawn = {file: _DRAWN.fullmatch(file.path.name) for file in files}
    ours = [file for file, name in drawn.items() if name and name[1] == _digest(prompt, base)]
    return [file for file, name in drawn.items() if not name] + ours


def _digest(prompt: str, base: str) -> str:
    return hashlib.sha256(json.dumps([prompt, base]).encode()).hexdigest()[:8]
