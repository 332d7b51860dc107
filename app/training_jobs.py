"""Training in the background: one at a time, apart from every visitor's session.

A job runs the loop of the training script on a view of the base of its own, so generation goes on
undisturbed. What it has to show is an immutable `TrainingStatus`, replaced after every step; a page
that is loaded later finds it as well as the one that started the job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from svfit_diffusion.families import family_of
from svfit_diffusion.files.atomic import clean_up
from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.keeping import save_somewhere
from svfit_diffusion.training.preparation import DEFAULT_STEPS

from .base_model import BaseModel
from .errors import AppError, LibraryError, public_reason
from .library import AdapterLibrary
from .photos import write_squares
from .settings import Limits
from .training_limits import check_training
from .training_status import Sample, Stage, TrainingStatus
from .visitors import acting_as, current_visitor

logger = logging.getLogger(__name__)

_THUMBNAIL = 256  # pixels; what a status keeps of a photo
_SCRATCH_NAME = "scratch"
_DAY = 24 * 60 * 60
_CLASS_IMAGE_SEED = 0  # the same for all trainings, which can thus share class images


class TrainingJobs:
    """Runs one training at a time in a background thread.

    Args:
        base: trained on, through views.
        library: where finished adapters go.
        folder: for class images, which trainings share, and for what is needed for a moment.
        limits: on photos and steps.
    """

    def __init__(
        self, base: BaseModel, library: AdapterLibrary, folder: Path, limits: Limits
    ) -> None:
        self._base = base
        self._library = library
        self._limits = limits
        self._folder = folder
        self._lock = threading.Lock()
        self._job: _Job | None = None
        clean_up(folder, _SCRATCH_NAME, idle=_DAY)  # photos, should an app have died here

    def start(
        self, adapter_name: str, squares: Sequence[Image.Image], config: TrainingConfig
    ) -> None:
        """Begin a training; returns at once.

        Args:
            adapter_name: what to call the adapter; a number is appended where that is taken.
            squares: the photos, cropped.
            config: settings; base, folders and precision are filled in.

        Raises:
            LibraryError: the name cannot be used, or nothing is taken in.
            SettingError: too few or too many photos or steps, or no prompt.
            AppError: another training is running.
        """
        self._library.check_open()
        name = self._library.check_name(adapter_name)
        check_training(squares, config, self._limits)
        with self._lock:
            if self._job is not None and self._job.is_alive():
                raise AppError(
                    f"“{self._job.status.adapter_name}” is being trained, and one training runs "
                    f"at a time: wait until it has finished, or stop it."
                )
            self._folder.mkdir(parents=True, exist_ok=True)
            self._job = _Job(self._base, self._library, self._folder, name, squares, config)
            self._job.start()

    def stop(self) -> None:
        """Ask the running training to stop after its current step and keep what it has learned."""
        if self._job is not None:
            self._job.stopping.set()

    def status(self) -> TrainingStatus | None:
        """The running training, or else the last one; None if there was none."""
        return self._job.status if self._job is not None else None

    def close(self) -> None:
        """Stop the running training, if there is one, and wait until its adapter is kept."""
        if self._job is not None and self._job.is_alive():
            self._job.stopping.set()
            self._job.join()


class _StoppedError(Exception):
    """The visitor stopped the training before its first step."""


class _Job(threading.Thread):
    """One training, in the name of who started it. Only its own thread replaces `status`."""

    def __init__(
        self,
        base: BaseModel,
        library: AdapterLibrary,
        folder: Path,
        adapter_name: str,
        squares: Sequence[Image.Image],
        config: TrainingConfig,
    ) -> None:
        super().__init__(name=f"training of {adapter_name}", daemon=True)
        self._base = base
        self._library = library
        self._folder = folder
        self._squares = squares
        self.visitor = current_visitor()
        config = dataclasses.replace(
            config,
            pretrained_model_name_or_path=base.source,
            output_dir=str(folder),
            class_data_dir=str(folder / "class_images" / _class_digest(base.source, config)),
            validation_prompt=config.validation_prompt or [config.instance_prompt],
            mixed_precision="no",
        )
        self.stopping = threading.Event()
        self.status = TrainingStatus(
            run=uuid.uuid4().hex,
            adapter_name=adapter_name,
            config=config,
            photos=tuple(_thumbnail(square) for square in squares),
            stage=Stage.PREPARING,
            message="Getting ready.",
            total_steps=config.max_train_steps or DEFAULT_STEPS,
        )

    def run(self) -> None:
        try:
            with acting_as(self.visitor):
                self._train()
        except _StoppedError:
            self._show(
                stage=Stage.STOPPED, message="Stopped before the first step; nothing is kept."
            )
        except Exception as error:
            logger.exception("training of %r failed", self.status.adapter_name)
            self._show(stage=Stage.FAILED, message=f"The training failed: {public_reason(error)}.")

    def _train(self) -> None:
        trainer = self._prepare()
        self._draw(trainer, base=True)
        self._show(stage=Stage.TRAINING, message="Learning your subject.")
        started = time.monotonic()
        for record in trainer.steps():
            pace = (time.monotonic() - started) / record.step
            self._show(
                losses=(*self.status.losses, record.loss),
                drifts=(*self.status.drifts, record.sigma_drift),
                seconds_left=pace * (record.total_steps - record.step),
            )
            if self.stopping.is_set():
                break
            is_last = record.step == record.total_steps
            if is_last or record.step % trainer.config.validation_steps == 0:
                self._draw(trainer)
        self._keep(trainer)

    def _prepare(self) -> Trainer:
        """Class images if wanted, then everything that comes before the first step."""
        pipe = self._base.view()
        self._draw_class_images(pipe)
        self._show(message="Looking at your photos.")
        with self._scratch() as photos:
            write_squares(self._squares, Path(photos))
            config = dataclasses.replace(self.status.config, instance_data_dir=photos)
            trainer = Trainer(config, pipe=pipe, show_progress=False)
            self._squares = ()
        self._leave_if_stopping()
        return trainer

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for what is needed for a moment."""
        return tempfile.TemporaryDirectory(
            dir=self._folder, prefix=f".{_SCRATCH_NAME}.", suffix=".tmp"
        )

    def _draw_class_images(self, pipe: Any) -> None:
        """Fill up the shared folder of class images, a batch at a time so that one can stop."""
        config = self.status.config
        if not config.with_prior_preservation:
            return
        total = config.num_class_images
        family = family_of(pipe)
        side = config.resolution or family.native_size
        arguments = family.generation_arguments(
            (side, side), config.num_inference_steps, config.guidance_scale
        )
        for start in range(0, total, config.sample_batch_size):
            self._leave_if_stopping()
            self._show(message=f"Drawing pictures of the class: {start} of {total}.")
            upto = min(start + config.sample_batch_size, total)
            generate_class_images(
                pipe,
                config.class_folder,
                config.class_prompt or "",
                upto,
                arguments,
                batch_size=config.sample_batch_size,
                seed=_CLASS_IMAGE_SEED,
                base=config.source.identity,
                show_progress=False,
            )

    def _leave_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise _StoppedError

    def _draw(self, trainer: Trainer, *, base: bool = False) -> None:
        config = trainer.config
        images = trainer.generate(config.validation_prompt, config.num_validation_images, base=base)
        sample = Sample(trainer.step, tuple(image for row in images for image in row))
        self._show(samples=(*self.status.samples, sample))

    def _keep(self, trainer: Trainer) -> None:
        """Put the adapter into the library."""
        self._show(stage=Stage.SAVING, message="Saving the adapter.", seconds_left=None)
        try:
            with self._scratch() as folder:
                name = self._library.add(trainer.save(Path(folder)), self.status.adapter_name)
        except OSError as error:
            path = save_somewhere(trainer.adapter(), self._folder / f"unsaved-{self.status.run}")
            logger.warning("no room in the library for what was trained, which is in %s", path)
            raise LibraryError(
                "the library cannot take the adapter; the server's log says where it is"
            ) from error
        stopped = trainer.step < trainer.total_steps
        done = f"Stopped after step {trainer.step}" if stopped else f"Done, {trainer.step} steps"
        self._show(
            adapter_name=name,
            stage=Stage.STOPPED if stopped else Stage.FINISHED,
            message=f"{done}: “{name}” is ready to use.",
            kept=True,
        )

    def _show(self, **changes: Any) -> None:
        revision = self.status.revision + 1
        self.status = dataclasses.replace(self.status, revision=revision, **changes)


def _thumbnail(square: Image.Image) -> Image.Image:
    small = square.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return small


def _class_digest(source: str, config: TrainingConfig) -> str:
    """Names the folder of class images by what decides how they look."""
    decides = (
        source,
        config.class_prompt,
        config.resolution,
        config.num_inference_steps,
        config.guidance_scale,
    )
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
