"""What is kept of a run: settings, log, pictures, trackers, checkpoints, the adapter."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import LostProcessError
from svfit_diffusion.files.hub import PICTURE_NAME, push_adapter, write_model_card
from svfit_diffusion.training import pictures
from svfit_diffusion.training.arguments import write_settings
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.keeping import Shortages, save_somewhere
from svfit_diffusion.training.output import begin_output, log_step
from svfit_diffusion.training.signals import Interrupts, Stop
from svfit_diffusion.training.state import begin_run, resume, save_checkpoint, tidy
from svfit_diffusion.training.step import StepRecord
from svfit_diffusion.training.timing import timed
from svfit_diffusion.training.trainer import Trainer


class KeptRun:
    """A trainer's run as it is kept in its folder.

    Args:
        trainer: before its first step; it goes on from the checkpoint if there is one.
        checkpoint: of the run.
        interrupts: of the process.

    Raises:
        CheckpointError: the checkpoint is of another base model.

    Attributes:
        trainer: as given.
        shortages: what the run has to do without.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path | None, interrupts: Interrupts) -> None:
        self.trainer = trainer
        self.shortages = Shortages()
        self._checkpoint = checkpoint
        self._interrupts = interrupts
        self._output = Path(trainer.config.output_dir)
        photos = trainer.photo_sets[0].photos
        usual = [] if trainer.config.in_parts else [photos[0].prompt]
        self._prompts = trainer.config.validation_prompt or usual
        self._before: pictures.Images = []
        self._go_on()
        if trainer.config.report_to:
            with Shortages().going_on_without("trackers"):
                settings = _plain(trainer.config)
                trainer.accelerator.init_trackers("dreambooth-svfit", config=settings)

    def _go_on(self) -> None:
        """Go on from the checkpoint, if there is one, and say so."""
        trainer, config, say = self.trainer, self.trainer.config, self.trainer.accelerator.print
        if config.resume_from_checkpoint and not self._checkpoint:
            say(
                f"Checkpoint {config.resume_from_checkpoint!r} does not exist in "
                f"{config.output_dir!r}: starting a new training"
            )
        if self._checkpoint:
            resume(trainer, self._checkpoint)
            say(f"Resumed from {self._checkpoint} at step {trainer.step}")
        if trainer.step >= trainer.total_steps:
            say(
                f"Nothing is left to train: {self._checkpoint} has {trainer.step} of "
                f"{trainer.total_steps} steps; to go on, give a larger max_train_steps"
            )

    def draw_base(self) -> None:
        """Draw what the base draws, to compare, if anything is drawn."""
        if not self._prompts:
            self.trainer.accelerator.print(
                "No pictures are drawn, as the denoiser is in parts: svfit generate draws them"
            )
            return
        self.trainer.accelerator.print("Drawing with the base model, to compare")
        with timed(self.trainer.seconds, "pictures"):
            self._before = pictures.draw(self.trainer, self._prompts, base=True)

    def begin(self) -> None:
        """Make the folder of the run what it is to begin with."""
        trainer, output = self.trainer, self._output
        if not trainer.accelerator.is_main_process:
            return
        with self.shortages.going_on_without("settings and pictures of the base"):
            tidy(output)
            begin_run(trainer, output)
            begin_output(output, self._checkpoint, trainer.step)
            settings = replace(trainer.config, seed=trainer.seed)
            write_settings(settings, output, trainer.chosen_settings())
            if self._prompts:
                pictures.write_single(trainer, self._before, self._prompts, "base")

    def note(self, record: StepRecord) -> None:
        """After a step: log it, and keep and draw what is due."""
        trainer, config, accelerator = self.trainer, self.trainer.config, self.trainer.accelerator
        if config.report_to:
            with self.shortages.going_on_without("trackers"):
                accelerator.log(_scalars(record), step=record.step)
        if accelerator.is_main_process:
            with self.shortages.going_on_without("the log"):
                log_step(self._output, record)
            if trainer.is_checkpoint_due():
                with self.shortages.going_on_without(f"a checkpoint at step {record.step}"):
                    save_checkpoint(trainer, self._output, config.checkpoints_total_limit)
        is_due = record.step % config.validation_steps == 0 and record.step < record.total_steps
        if config.validation_prompt and is_due:
            # What is drawn may be left at once, but by all processes together.
            alone = accelerator.num_processes == 1
            with (
                contextlib.suppress(Stop),
                self._interrupts.at_once() if alone else contextlib.nullcontext(),
            ):
                pictures.validate(trainer, self.shortages)

    def keep_if_possible(self, error: Exception) -> None:
        """Write what was learned before an error, which is told whether or not this succeeds."""
        trainer = self.trainer
        # All processes have learned the same; which of them is left, none can know.
        is_ours = trainer.accelerator.is_main_process or isinstance(error, LostProcessError)
        if not trainer.step or not is_ours:
            return
        with contextlib.suppress(Exception):
            path = save_somewhere(trainer.adapter(), self._output)
            print(f"What was learned in {trainer.step} steps is kept: {path}")
            limit = trainer.config.checkpoints_total_limit
            checkpoint = save_checkpoint(trainer, self._output, limit)
            print(f"Training can go on from {checkpoint}")

    def end_trackers(self) -> None:
        """Have trackers write what they have not yet, where other runs go on."""
        with self.shortages.going_on_without("the end of what trackers log"):
            for tracker in self.trainer.accelerator.trackers:
                tracker.finish()

    def finish(self) -> Path:
        """Write the adapter; after the last step draw with it and upload it, if that is wanted.

        Returns:
            The folder of the adapter.
        """
        trainer = self.trainer
        if not trainer.accelerator.is_main_process:
            return self._output
        adapter = trainer.adapter()
        path = save_somewhere(adapter, self._output)
        kib = path.stat().st_size / 1024
        print(f"Adapter: {path} ({kib:.0f} KiB, {adapter.parameter_count:,} values)")
        if trainer.step < trainer.total_steps:
            print(f"Stopped after step {trainer.step} of {trainer.total_steps}, no pictures drawn")
            with self.shortages.going_on_without("a checkpoint"):
                limit = trainer.config.checkpoints_total_limit
                checkpoint = save_checkpoint(trainer, self._output, limit)
                print(f"--resume_from_checkpoint=latest goes on from {checkpoint}")
            return path.parent
        if self._prompts:
            self._draw_after(path.parent)
        spent = (f"{stage} {taken:.1f}" for stage, taken in trainer.seconds.items())
        print(f"Seconds: {', '.join(spent)}")
        if trainer.config.push_to_hub and not self._interrupts.noted:
            _push(trainer, path.parent)
        return path.parent

    def _draw_after(self, folder: Path) -> None:
        """Draw what the adapter draws, beside what the base drew."""
        trainer, prompts = self.trainer, self._prompts
        with (
            contextlib.suppress(Stop),
            self._interrupts.at_once(),
            timed(trainer.seconds, "pictures"),
        ):
            after = pictures.draw(trainer, prompts)
            picture = pictures.before_after(trainer, prompts, self._before, after)
            with self.shortages.going_on_without("pictures of the adapter"):
                pictures.write(picture, folder / PICTURE_NAME)
                print(f"Picture: {folder / PICTURE_NAME}")
                pictures.write_single(trainer, after, prompts, pictures.step_name(trainer.step))


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
