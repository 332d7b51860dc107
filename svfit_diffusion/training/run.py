"""A whole training run, from settings to an adapter in its folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from svfit_diffusion.errors import LostProcessError, StoppedError
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.kept_run import KeptRun
from svfit_diffusion.training.output import check_output
from svfit_diffusion.training.processes import together, wait_for_all
from svfit_diffusion.training.signals import Interrupts, Stop
from svfit_diffusion.training.state import check_settings, find_checkpoint, tidy
from svfit_diffusion.training.timing import timed
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
    checkpoint = check_run(config)
    with Interrupts() as interrupts:
        try:
            with interrupts.at_once():
                trainer = Trainer(config, make_accelerator(config))
                run = KeptRun(trainer, checkpoint, interrupts)
                _say_what_is_trained(trainer)
                run.draw_base()
        except Stop:
            raise StoppedError(
                "stopped before the first step: nothing is learned yet, and nothing is saved but "
                "the class images that were drawn"
            ) from None
        run.begin()
        with timed(trainer.seconds, "training"):
            _take_steps(run, interrupts)
        with contextlib.suppress(LostProcessError):  # all steps are done
            wait_for_all(trainer.accelerator)
        output = run.finish()
        with run.shortages.going_on_without("the end of what trackers log"):
            trainer.accelerator.end_training()
    return output


def check_run(config: TrainingConfig) -> Path | None:
    """Make sure, before any work, that a run can be kept. A run that goes on takes the seed of its
    checkpoint.

    Returns:
        The checkpoint that it goes on from, if it does.

    Raises:
        ConfigError: its folder cannot be written, or holds an earlier run that this one neither
            goes on from nor may overwrite.
        CheckpointError: the checkpoint is damaged, not there, or of another run.
    """
    output, checkpoint = Path(config.output_dir), None
    if config.resume_from_checkpoint:
        tidy(output)
        checkpoint = find_checkpoint(config.resume_from_checkpoint, output)
    check_output(output, checkpoint, overwrite=config.overwrite)
    if checkpoint:
        config.seed = check_settings(config, checkpoint)
    return checkpoint


def is_stopping(accelerator: Accelerator, interrupts: Interrupts) -> bool:
    """Whether a signal has come, to any of the processes."""
    if accelerator.num_processes == 1:
        return interrupts.noted
    noted = torch.tensor(float(interrupts.noted), device=accelerator.device)
    with together(accelerator):
        return bool(accelerator.reduce(noted, "sum").item())


def _say_what_is_trained(trainer: Trainer) -> None:
    budget = trainer.config.budget
    values = sum(parameter.numel() for parameter in trainer.sigma_parameters())
    kept = f", to keep the {budget:,} most useful" if budget else ""
    trainer.accelerator.print(f"Training {values:,} singular values{kept}")


def _take_steps(run: KeptRun, interrupts: Interrupts) -> None:
    """All steps, or as many as are made before a signal; watched and kept on the way."""
    trainer, accelerator = run.trainer, run.trainer.accelerator
    total, hidden = trainer.total_steps, not accelerator.is_main_process
    with tqdm(initial=trainer.step, total=total, disable=hidden) as bar:
        try:
            for record in trainer.steps():
                bar.update()
                bar.set_postfix(loss=f"{record.loss:.4f}", drift=f"{record.sigma_drift:.2%}")
                run.note(record)
                if is_stopping(accelerator, interrupts):
                    break
        except Exception as error:
            run.keep_if_possible(error)
            raise
