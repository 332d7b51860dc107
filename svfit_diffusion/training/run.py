"""A whole training run: steps, pictures, trackers, checkpoints, the adapter."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from svfit_diffusion.files.atomic import make_folder, write_atomically
from svfit_diffusion.files.hub import PICTURE_NAME, push_adapter, write_model_card
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.arguments import write_settings
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.grid import labelled_grid, stacked
from svfit_diffusion.training.keeping import going_on_without, log, save_somewhere
from svfit_diffusion.training.state import (
    begin_run,
    check_settings,
    find_checkpoint,
    resume,
    save_checkpoint,
    tidy,
)
from svfit_diffusion.training.step import StepRecord
from svfit_diffusion.training.trainer import Trainer

Images = list[list[Image.Image]]


def train(config: TrainingConfig) -> Path:
    """Run a whole training: step, watch, checkpoint, save. Returns the adapter's folder."""
    output = Path(config.output_dir)
    with going_on_without("cleaning up"):
        tidy(output)
    checkpoint = None
    if config.resume_from_checkpoint:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, output)
        if checkpoint:
            config.seed = check_settings(config, checkpoint)
    accelerator = make_accelerator(config)
    trainer = Trainer(config, accelerator)
    if checkpoint:
        resume(trainer, checkpoint)
        accelerator.print(f"Resumed from {checkpoint} at step {trainer.step}")
    if accelerator.is_main_process:
        with going_on_without("a note of which run this is"):
            begin_run(trainer, output)
    if config.report_to:
        with going_on_without("trackers"):
            accelerator.init_trackers("dreambooth-svfit", config=_plain(config))
    values = sum(parameter.numel() for parameter in trainer.sigma_parameters())
    kept = f", to keep the {config.budget:,} most useful" if config.budget else ""
    accelerator.print(f"Training {values:,} singular values{kept}")
    prompts = config.validation_prompt or [trainer.photo_sets[0].photos[0].prompt]
    generating = time.perf_counter()
    before = _generate(trainer, prompts, base=True)
    prepared = time.perf_counter()

    _take_steps(trainer)
    trained = time.perf_counter()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        path = save_somewhere(trainer.adapter(), output)
        picture = _before_after(trainer, prompts, before, _generate(trainer, prompts))
        with going_on_without("the settings and the picture"):
            write_settings(replace(config, seed=trainer.seed), path.parent)
            _write_picture(picture, path.parent / PICTURE_NAME)
        seconds = {
            **trainer.seconds,
            "training": trained - prepared,
            "pictures": prepared - generating + time.perf_counter() - trained,
        }
        _report(trainer, path, seconds)
        if config.push_to_hub:
            _push(trainer, path.parent)
        output = path.parent
    with going_on_without("the end of the trackers' logs"):
        accelerator.end_training()
    return output


def _take_steps(trainer: Trainer) -> None:
    """All steps, or as many as are made before Ctrl-C; watched and kept on the way."""
    config, accelerator = trainer.config, trainer.accelerator
    output, total = Path(config.output_dir), trainer.total_steps
    bar = tqdm(initial=trainer.step, total=total, disable=not accelerator.is_main_process)
    try:
        for record in trainer.steps():
            bar.update()
            bar.set_postfix(loss=f"{record.loss:.4f}", drift=f"{record.sigma_drift:.2%}")
            if config.report_to:
                log(accelerator, _scalars(record), record.step)
            if accelerator.is_main_process and record.step % config.checkpointing_steps == 0:
                with going_on_without(f"a checkpoint at step {record.step}"):
                    save_checkpoint(trainer, output, config.checkpoints_total_limit)
            is_due = record.step % config.validation_steps == 0 and record.step < total
            if config.validation_prompt and is_due:
                _validate(trainer, config, record.step)
    except KeyboardInterrupt:
        accelerator.print(f"Stopped after step {trainer.step}; saving what was learned")
    bar.close()


def _report(trainer: Trainer, path: Path, seconds: dict[str, float]) -> None:
    values = trainer.adapter().parameter_count
    print(
        f"Adapter: {path} ({path.stat().st_size / 1024:.0f} KiB, {values:,} values)\n"
        f"Picture: {path.parent / PICTURE_NAME}\n"
        f"Seconds: {', '.join(f'{stage} {taken:.1f}' for stage, taken in seconds.items())}"
    )


def _push(trainer: Trainer, output: Path) -> None:
    config, adapter = trainer.config, trainer.adapter()
    repo_id = config.hub_model_id or Path(config.output_dir).name
    write_model_card(output, repo_id, adapter.metadata, adapter.parameter_count)
    print(f"Uploaded to {push_adapter(output, repo_id, config.hub_token)}")


def _generate(trainer: Trainer, prompts: list[str], *, base: bool = False) -> Images:
    """Validation images, of the base model if `base`, on the main process."""
    if not trainer.accelerator.is_main_process:
        return []
    number = trainer.config.num_validation_images
    return trainer.generate(prompts, number, base=base)


def _validate(trainer: Trainer, config: TrainingConfig, step: int) -> None:
    """Generate validation images; write them as a picture and to the trackers."""
    images = _generate(trainer, config.validation_prompt)
    if images:
        columns = [f"step {step}"] + [""] * (config.num_validation_images - 1)
        picture = labelled_grid(images, config.validation_prompt, columns)
        with going_on_without("a validation picture"):
            folder = Path(config.output_dir) / "validation"
            make_folder(folder)
            _write_picture(picture, folder / f"step_{step:05d}.png")
            for tracker in trainer.accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    _log_picture(tracker, picture, step)
    trainer.accelerator.wait_for_everyone()


def _write_picture(picture: Image.Image, path: Path) -> None:
    write_atomically(path, partial(picture.save, format="PNG"))


def _log_picture(tracker: Any, picture: Image.Image, step: int) -> None:
    if tracker.name == "tensorboard":  # wants arrays, where others take pictures
        import numpy as np

        tracker.log_images({"validation": np.asarray(picture)[None]}, step, dataformats="NHWC")
    else:
        tracker.log_images({"validation": [picture]}, step)


def _before_after(
    trainer: Trainer, prompts: list[str], before: Images, after: Images
) -> Image.Image:
    """The photos on top, then a row per prompt: base model on the left, adapter on the right."""
    number = trainer.config.num_validation_images
    photos = [photo.image for photo in trainer.photo_sets[0].photos]
    columns = ["before"] + [""] * (number - 1) + ["after"] + [""] * (number - 1)
    rows = [b + a for b, a in zip(before, after, strict=True)]
    tile = 160
    small = tile * 2 * number // max(2 * number, len(photos[:5]))
    top = labelled_grid([photos[:5]], ["training photos"], [], tile=small)
    return stacked([top, labelled_grid(rows, prompts, columns, tile=tile)])


def _scalars(record: StepRecord) -> dict[str, float]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in ("step", "total_steps") and value is not None
    }


def _plain(config: TrainingConfig) -> dict[str, Any]:
    """Settings as trackers take them: numbers and strings, no token."""
    settings = {name: value for name, value in vars(config).items() if name != "hub_token"}
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value)
        for name, value in settings.items()
    }
