"""One training: the loop of the training script on a view of the base of its own, so generation
goes on undisturbed. What it has to show is an immutable `TrainingStatus`, replaced step by step.
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
from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.keeping import save_somewhere
from svfit_diffusion.training.preparation import DEFAULT_STEPS
from svfit_diffusion.training.threads import leave_busy_cores

from .base_model import BaseModel
from .disk import MEGABYTE, stored, trim
from .errors import LibraryError, public_reason
from .library import AdapterLibrary
from .photos import CroppedPhoto, write_photos
from .settings import Limits
from .training_status import Sample, Stage, TrainingStatus
from .visitors import acting_as, current_visitor

logger = logging.getLogger(__name__)

_THUMBNAIL = 256  # pixels; what a status keeps of a photo
_BYTES_PER_PIXEL = 3  # of a picture that cannot be compressed
_CLASS_IMAGE_SEED = 0  # the same for all trainings, which can thus share class images


SCRATCH_NAME = "scratch"


def scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder, in `folder`, for what is needed for a moment."""
    return tempfile.TemporaryDirectory(dir=folder, prefix=f".{SCRATCH_NAME}.", suffix=".tmp")


class _StoppedError(Exception):
    """The visitor stopped the training before its first step."""


class TrainingJob:
    """One training, run by one thread, which alone replaces `status` from then on.

    Args:
        base: trained on, through a view.
        library: where the adapter goes.
        folder: for class images, which trainings share, and for what is needed for a moment.
        adapter_name: what to call the adapter.
        photos: as cropped and captioned.
        config: settings; base, folders and what is left open of the prompts are filled in.
        limits: on what class images take together.

    Attributes:
        photos: as given.
        visitor: who asked for it, in whose name it is done.
        stopping: set to stop it after the step under way.
        status: what there is to see of it.
    """

    def __init__(
        self,
        base: BaseModel,
        library: AdapterLibrary,
        folder: Path,
        adapter_name: str,
        photos: Sequence[CroppedPhoto],
        config: TrainingConfig,
        limits: Limits,
    ) -> None:
        self._base = base
        self._library = library
        self._folder = folder
        self._class_bytes = limits.max_all_class_megabytes * MEGABYTE
        self.photos = tuple(photos)
        self.visitor = current_visitor()
        config = dataclasses.replace(
            config,
            pretrained_model_name_or_path=base.source,
            output_dir=str(folder),
            class_data_dir=str(folder / "class_images" / _class_digest(base.source, config)),
            validation_prompt=config.validation_prompt or [config.instance_prompt],
        )
        self.stopping = threading.Event()
        self.status = TrainingStatus(
            run=uuid.uuid4().hex,
            adapter_name=adapter_name,
            config=config,
            photos=tuple(_thumbnail(photo.square()) for photo in photos),
            stage=Stage.WAITING,
            message="Waiting for its turn.",
            total_steps=config.max_train_steps or DEFAULT_STEPS,
        )

    def run(self) -> None:
        """Train, to the end or until it is stopped; errors become the status."""
        self._show(stage=Stage.PREPARING, message="Getting ready.")
        leave_busy_cores()
        try:
            with acting_as(self.visitor):
                self._train()
        except _StoppedError:
            self.leave("Stopped before the first step; nothing is kept.")
        except Exception as error:
            logger.exception("training of %r failed", self.status.adapter_name)
            self._show(stage=Stage.FAILED, message=f"The training failed: {public_reason(error)}.")

    def leave(self, message: str) -> None:
        """End it before its first step."""
        self._show(stage=Stage.STOPPED, message=message)

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
        with scratch(self._folder) as photos:
            write_photos(self.photos, Path(photos))
            config = dataclasses.replace(self.status.config, instance_data_dir=photos)
            trainer = Trainer(config, pipe=pipe, show_progress=False)
        self._leave_if_stopping()
        return trainer

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
        self._make_class_room(total * side**2 * _BYTES_PER_PIXEL)
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

    def _make_class_room(self, needed: int) -> None:
        """Let the oldest class images of other trainings make room for so many bytes."""
        own = self.status.config.class_folder
        images = stored((self._folder / "class_images").glob("*/*.png"))
        trim([image for image in images if image.path.parent != own], self._class_bytes - needed)

    def _leave_if_stopping(self) -> None:
        if self.stopping.is_set():
            raise _StoppedError

    def _draw(self, trainer: Trainer, *, base: bool = False) -> None:
        config = trainer.config
        images = trainer.generate(config.validation_prompt, config.num_validation_images, base=base)
        adapter = None if base else trainer.adapter()
        sample = Sample(trainer.step, tuple(map(tuple, images)), adapter)
        self._show(samples=(*self.status.samples, sample))

    def _keep(self, trainer: Trainer) -> None:
        """Put the adapter into the library."""
        self._show(stage=Stage.SAVING, message="Saving the adapter.", seconds_left=None)
        try:
            with scratch(self._folder) as folder:
                written = trainer.save(Path(folder))
                name = self._library.add(written, self.status.adapter_name, promised=True)
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
