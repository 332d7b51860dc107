"""Pictures of a run: drawn on the way and at its end, single and side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from svfit_diffusion.files.atomic import make_folder, write_atomically
from svfit_diffusion.training.grid import labelled_grid, stacked
from svfit_diffusion.training.keeping import Shortages
from svfit_diffusion.training.output import PICTURES
from svfit_diffusion.training.processes import wait_for_all
from svfit_diffusion.training.trainer import Trainer

Images = list[list[Image.Image]]


def draw(trainer: Trainer, prompts: list[str], *, base: bool = False) -> Images:
    """A row of images per prompt, of the base model if `base`, on the main process."""
    if not trainer.accelerator.is_main_process:
        return []
    return trainer.generate(prompts, trainer.config.num_validation_images, base=base)


def write_single(trainer: Trainer, images: Images, prompts: Sequence[str], name: str) -> None:
    """Write each image as a file of its own, with prompt and seed in it.

    Args:
        trainer: of the run.
        images: a row per prompt.
        prompts: of the rows.
        name: of the folder, in that of the pictures.
    """
    folder = Path(trainer.config.output_dir) / PICTURES / name
    make_folder(folder)
    for row, (prompt, drawn) in enumerate(zip(prompts, images, strict=True), 1):
        for number, image in enumerate(drawn):
            about = PngInfo()
            about.add_text("svfit", json.dumps({"prompt": prompt, "seed": trainer.seed + number}))
            write(image, folder / f"prompt{row}_{number}.png", about)


def write(picture: Image.Image, path: Path, about: PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all, with what is to be said of it.

    Raises:
        StorageError: there is no room or no permission.
    """
    write_atomically(path, partial(picture.save, format="PNG", pnginfo=about))


def validate(trainer: Trainer, shortages: Shortages) -> None:
    """Draw the validation prompts; write the images and give trackers a picture of them."""
    config, name = trainer.config, step_name(trainer.step)
    images = draw(trainer, config.validation_prompt)
    if images:
        columns = [f"step {trainer.step}"] + [""] * (config.num_validation_images - 1)
        picture = labelled_grid(images, config.validation_prompt, columns)
        with shortages.going_on_without(f"pictures of step {trainer.step}"):
            write_single(trainer, images, config.validation_prompt, name)
            write(picture, Path(config.output_dir) / PICTURES / f"{name}.png")
        with shortages.going_on_without("trackers"):
            for tracker in trainer.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    _log_picture(tracker, picture, trainer.step)
    wait_for_all(trainer.accelerator)


def step_name(step: int) -> str:
    """Names the pictures of a step, in the order of steps."""
    return f"step_{step:05d}"


def before_after(
    trainer: Trainer, prompts: list[str], before: Images, after: Images
) -> Image.Image:
    """The photos on top, then a row per prompt: base model on the left, adapter on the right."""
    number = trainer.config.num_validation_images
    photos = [photo.image for photo in trainer.photo_sets[0].photos[:5]]
    columns = ["before"] + [""] * (number - 1) + ["after"] + [""] * (number - 1)
    rows = [b + a for b, a in zip(before, after, strict=True)]
    tile = 160
    small = tile * 2 * number // max(2 * number, len(photos))
    top = labelled_grid([photos], ["training photos"], [], tile=small)
    return stacked([top, labelled_grid(rows, prompts, columns, tile=tile)])


def _log_picture(tracker: Any, picture: Image.Image, step: int) -> None:
    if tracker.name == "tensorboard":  # wants arrays, where others take pictures
        import numpy as np

        tracker.log_images({"validation": np.asarray(picture)[None]}, step, dataformats="NHWC")
    else:
        tracker.log_images({"validation": [picture]}, step)
