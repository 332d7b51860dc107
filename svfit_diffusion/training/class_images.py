"""Class images for prior preservation (DreamBooth, arXiv 2208.12242), made by the base model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.photos import image_files


def class_folder(config: TrainingConfig) -> Path:
    """Where the class images of a run are."""
    return Path(config.class_data_dir or Path(config.output_dir) / "class_images")


def missing_class_images(config: TrainingConfig) -> int:
    """How many class images the folder lacks."""
    folder = class_folder(config)
    present = len(image_files(folder)) if folder.is_dir() else 0
    return max(0, config.num_class_images - present)


def generate_class_images(
    pipe: Any,
    config: TrainingConfig,
    seed: int,
    *,
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> None:
    """Fill up the class folder with images that `pipe` makes for the class prompt, in batches.

    Image number i is drawn from its own seed, so the set does not depend on batches or processes,
    and an interrupted run goes on where it stopped.

    Args:
        pipe: the base pipeline.
        config: names folder, prompt, number, batch size, steps and guidance.
        seed: the run's seed.
        process_index: this process; it makes every `num_processes`-th image.
        num_processes: processes at work.
        show_progress: show a progress bar.
    """
    folder = class_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    total = config.num_class_images
    others = len([p for p in image_files(folder) if not p.name.startswith("class_")])
    # By number, not by place in a list: processes look at the folder at different times.
    own = range(process_index, total - others, num_processes)
    numbers = [number for number in own if not _path(folder, number).exists()]
    with tqdm(total=len(numbers), desc="Class images", disable=not show_progress) as bar:
        for start in range(0, len(numbers), config.sample_batch_size):
            batch = numbers[start : start + config.sample_batch_size]
            images = pipe(
                [config.class_prompt] * len(batch),
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                generator=[torch.Generator().manual_seed(seed + 1 + number) for number in batch],
                height=config.resolution,
                width=config.resolution,
            ).images
            for number, image in zip(batch, images, strict=True):
                write_atomically(_path(folder, number), functools.partial(image.save, format="PNG"))
            bar.update(len(batch))


def _path(folder: Path, number: int) -> Path:
    return folder / f"class_{number:04d}.png"
