"""A whole training run: steps, pictures, trackers, checkpoints, the adapter."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from svfit_diffusion.errors import LostProcessError, StoppedError
from svfit_diffusion.files.hub import PICTURE_NAME, push_adapter, write_model_card
from svfit_diffusion.training import pictures
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.arguments import write_settings
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.keeping import Shortages, save_somewhere
from svfit_diffusion.training.output import begin_output, check_output, log_step
from svfit_diffusion.training.processes import together, wait_for_all
from svfit_diffusion.training.signals import Interrupts, Stop
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


def train(config: TrainingConfig) -> Path:
    """Run a whole training: step, watch, checkpoint, save. Returns the adapter's folder.

    Ctrl-C and SIGTERM stop it after the step under way, with adapter and checkpoint written.

    Raises:
        ConfigError: as `Trainer`; or the folder of the run cannot be written, or holds an earlier
            run that this one neither goes on from nor may overwrite.
        StoppedError: it was stopped before the first step.
        LostProcessError: another process of it has ended; what was learned is kept.
    """
    output, checkpoint = Path(config.output_dir), None
    if config.resume_from_checkpoint:
        tidy(output)
        checkpoint = find_checkpoint(config.resume_from_checkpoint, output)
    check_output(output, checkpoint, overwrite=config.overwrite)
    if checkpoint:
        config.seed = check_settings(config, checkpoint)
    with Interrupts() as interrupts:
        try:
            with interrupts.at_once():
                trainer = _ready(config, checkpoint)
                accelerator = trainer.accelerator
                prompts = config.validation_prompt or [trainer.photo_sets[0].photos[0].prompt]
                accelerator.print("Drawing with the base model, to compare")
                with _timed(trainer, "pictures"):
                    before = pictures.draw(trainer, prompts, base=True)
        except Stop:
            raise StoppedError(
                "stopped before the first step: nothing is learned yet, and nothing is saved but "
                "the class images that were drawn"
            ) from None
        shortages = Shortages()
        if accelerator.is_main_process:
            with shortages.going_on_without("settings and pictures of the base"):
                _begin(trainer, checkpoint)
                pictures.write_single(trainer, before, prompts, "base")
        with _timed(trainer, "training"):
            _take_steps(trainer, interrupts, shortages)
        with contextlib.suppress(LostProcessError):  # all steps are done
            wait_for_all(accelerator)
        if accelerator.is_main_process:
            output = _finish(trainer, interrupts, shortages, prompts, before)
        with shortages.going_on_without("the end of what trackers log"):
            accelerator.end_training()
    return output


def _begin(trainer: Trainer, checkpoint: Path | None) -> None:
    """Make the folder of a run what it is to begin with."""
    config = trainer.config
    output = Path(config.output_dir)
    tidy(output)
    begin_run(trainer, output)
    begin_output(output, checkpoint, trainer.step)
    write_settings(replace(config, seed=trainer.seed), output, trainer.chosen_settings())


def _ready(config: TrainingConfig, checkpoint: Path | None) -> Trainer:
    """The trainer before its next step."""
    accelerator = make_accelerator(config)
    if config.resume_from_checkpoint and not checkpoint:
        accelerator.print(
            f"Checkpoint {config.resume_from_checkpoint!r} does not exist in "
            f"{config.output_dir!r}: starting a new training"
        )
    trainer = Trainer(config, accelerator)
    if checkpoint:
        resume(trainer, checkpoint)
        accelerator.print(f"Resumed from {checkpoint} at step {trainer.step}")
    if trainer.step >= trainer.total_steps:
        accelerator.print(
            f"Nothing is left to train: {checkpoint} has {trainer.step} of "
            f"{trainer.total_steps} steps; to go on, give a larger max_train_steps"
        )
    if config.report_to:
        with Shortages().going_on_without("trackers"):
            accelerator.init_trackers("dreambooth-svfit", config=_plain(config))
    values = sum(parameter.numel() for parameter in trainer.sigma_parameters())
    kept = f", to keep the {config.budget:,} most useful" if config.budget else ""
    accelerator.print(f"Training {values:,} singular values{kept}")
    return trainer


def _take_steps(trainer: Trainer, interrupts: Interrupts, shortages: Shortages) -> None:
    """All steps, or as many as are made before a signal; watched and kept on the way."""
    config, accelerator = trainer.config, trainer.accelerator
    output, total = Path(config.output_dir), trainer.total_steps
    # What is drawn may be left at once, but by all processes together.
    alone = accelerator.num_processes == 1
    bar = tqdm(initial=trainer.step, total=total, disable=not accelerator.is_main_process)
    try:
        for record in trainer.steps():
            bar.update()
            bar.set_postfix(loss=f"{record.loss:.4f}", drift=f"{record.sigma_drift:.2%}")
            if config.report_to:
                with shortages.going_on_without("trackers"):
                    accelerator.log(_scalars(record), step=record.step)
            if accelerator.is_main_process:
                with shortages.going_on_without("the log"):
                    log_step(output, record)
                if trainer.is_checkpoint_due():
                    with shortages.going_on_without(f"a checkpoint at step {record.step}"):
                        save_checkpoint(trainer, output, config.checkpoints_total_limit)
            is_due = record.step % config.validation_steps == 0 and record.step < total
            if config.validation_prompt and is_due:
                with (
                    contextlib.suppress(Stop),
                    interrupts.at_once() if alone else contextlib.nullcontext(),
                ):
                    pictures.validate(trainer, shortages)
            if _is_stopping(accelerator, interrupts):
                break
    except Exception as error:
        # All processes have learned the same; which of them is left, none can know.
        if trainer.step and (accelerator.is_main_process or isinstance(error, LostProcessError)):
            _keep_if_possible(trainer)
        raise
    finally:
        bar.close()


def _is_stopping(accelerator: Accelerator, interrupts: Interrupts) -> bool:
    """Whether a signal has come, to any of the processes."""
    if accelerator.num_processes == 1:
        return interrupts.noted
    noted = torch.tensor(float(interrupts.noted), device=accelerator.device)
    with together(accelerator):
        return bool(accelerator.reduce(noted, "sum").item())


def _keep_if_possible(trainer: Trainer) -> None:
    """Write what was learned before an error, which is told whether or not this succeeds."""
    output = Path(trainer.config.output_dir)
    with contextlib.suppress(Exception):
        path = save_somewhere(trainer.adapter(), output)
        print(f"What was learned in {trainer.step} steps is kept: {path}")
        checkpoint = save_checkpoint(trainer, output, trainer.config.checkpoints_total_limit)
        print(f"Training can go on from {checkpoint}")


def _finish(
    trainer: Trainer,
    interrupts: Interrupts,
    shortages: Shortages,
    prompts: list[str],
    before: pictures.Images,
) -> Path:
    """Write the adapter; after the last step draw with it and upload it, if that is wanted.

    Returns:
        The folder of the adapter.
    """
    output, is_whole = Path(trainer.config.output_dir), trainer.step >= trainer.total_steps
    path = save_somewhere(trainer.adapter(), output)
    kib, values = path.stat().st_size / 1024, trainer.adapter().parameter_count
    print(f"Adapter: {path} ({kib:.0f} KiB, {values:,} values)")
    if not is_whole:
        print(f"Stopped after step {trainer.step} of {trainer.total_steps}, no pictures drawn")
        with shortages.going_on_without("a checkpoint"):
            checkpoint = save_checkpoint(trainer, output, trainer.config.checkpoints_total_limit)
            print(f"--resume_from_checkpoint=latest goes on from {checkpoint}")
        return path.parent
    with contextlib.suppress(Stop), interrupts.at_once(), _timed(trainer, "pictures"):
        after = pictures.draw(trainer, prompts)
        picture = pictures.before_after(trainer, prompts, before, after)
        with shortages.going_on_without("pictures of the adapter"):
            pictures.write(picture, path.parent / PICTURE_NAME)
            print(f"Picture: {path.parent / PICTURE_NAME}")
            pictures.write_single(trainer, after, prompts, pictures.step_name(trainer.step))
    spent = (f"{stage} {taken:.1f}" for stage, taken in trainer.seconds.items())
    print(f"Seconds: {', '.join(spent)}")
    if trainer.config.push_to_hub and not interrupts.noted:
        _push(trainer, path.parent)
    return path.parent


@contextlib.contextmanager
def _timed(trainer: Trainer, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    taken = trainer.seconds.get(stage, 0.0) + time.perf_counter() - started
    trainer.seconds[stage] = taken


def _push(trainer: Trainer, output: Path) -> None:
    config, adapter = trainer.config, trainer.adapter()
    repo_id = config.hub_model_id or Path(config.output_dir).name
    write_model_card(output, repo_id, adapter.metadata, adapter.parameter_count)
    print(f"Uploaded to {push_adapter(output, repo_id, config.hub_token)}")


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
