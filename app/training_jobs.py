"""Trainings in the background: one at a time, the others in a queue, apart from every visitor's
session. A page that is loaded later finds them as well as the one that asked for them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from svfit_diffusion.files.adapter import WEIGHTS_NAME, write_adapter
from svfit_diffusion.files.atomic import clean_up
from svfit_diffusion.training import TrainingConfig

from .base_model import BaseModel
from .errors import AppError, LibraryError, SettingError
from .fairness import superfluous
from .library import AdapterLibrary
from .photos import CroppedPhoto
from .settings import Limits
from .training_job import SCRATCH_NAME, TrainingJob, scratch
from .training_status import TrainingStatus

_DAY = 24 * 60 * 60
_REMEMBERED = 20
"""Trainings that are over and can still be looked at; beyond, those of whoever has most go."""


class TrainingJobs:
    """Runs trainings one after the other in a background thread.

    Args:
        base: trained on, through views.
        library: where finished adapters go.
        folder: for class images, which trainings share, and for what is needed for a moment.
        limits: on photos and on how many may wait.
    """

    def __init__(
        self, base: BaseModel, library: AdapterLibrary, folder: Path, limits: Limits
    ) -> None:
        self._base = base
        self._library = library
        self._limits = limits
        self._folder = folder
        self._lock = threading.Lock()
        self._waiting: list[TrainingJob] = []
        self._running: TrainingJob | None = None
        self._over: list[TrainingJob] = []
        self._cancelled: list[TrainingJob] = []
        self._thread: threading.Thread | None = None
        clean_up(folder, SCRATCH_NAME, idle=_DAY)  # photos, should an app have died here

    def start(
        self, adapter_name: str, photos: Sequence[CroppedPhoto], config: TrainingConfig
    ) -> str:
        """Begin a training, or queue it behind those that were asked for before; returns at once.

        Args:
            adapter_name: what to call the adapter; a number is appended where that is taken.
            photos: the photos, cropped.
            config: settings; base and folders are filled in.

        Returns:
            What tells this training from every other, its `run`.

        Raises:
            LibraryError: the name cannot be used, nothing is taken in, or there is no room.
            SettingError: too few or too many photos.
            AppError: too many are waiting.
        """
        self._library.check_open()
        self._library.check_room()
        self.check_photos(len(photos))
        name = self._library.check_name(adapter_name)
        with self._lock:
            if len(self._waiting) >= self._limits.max_waiting_trainings:
                raise AppError(
                    f"{len(self._waiting)} trainings are waiting, and no more are taken: come "
                    f"back when one of them is over, or cancel one."
                )
            self._folder.mkdir(parents=True, exist_ok=True)
            job = TrainingJob(
                self._base, self._library, self._folder, name, photos, config, self._limits
            )
            if self._thread is not None:
                self._waiting.insert(self._place(job), job)
            else:
                self._running = job
                self._thread = threading.Thread(target=self._work, name="trainings", daemon=True)
                self._thread.start()
        return job.status.run

    def check_photos(self, count: int) -> None:
        """Raise `SettingError` unless one can train on that many photos."""
        limits = self._limits
        if not limits.min_photos <= count <= limits.max_photos:
            raise SettingError(
                f"A training takes {limits.min_photos} to {limits.max_photos} photos, "
                f"you have given {count or 'none'}.",
                "drop",
            )

    def status(self, run: str | None = None) -> TrainingStatus | None:
        """Of a training, None if it is not known any more; by default of the one that runs, or else
        of the last one, None if there was none.
        """
        if run is not None:
            job = self._job(run)
            return job.status if job else None
        begun = self._begun()
        return begun[-1].status if begun else None

    def waiting(self) -> list[TrainingStatus]:
        """Those that wait for their turn, the next first."""
        with self._lock:
            return [job.status for job in self._waiting]

    def photos(self, run: str) -> tuple[CroppedPhoto, ...]:
        """The photos of a training; none if it is not known any more."""
        job = self._job(run)
        return job.photos if job else ()

    def move_up(self, run: str) -> None:
        """Let a training that waits change places with the one before it, if one may."""
        with self._lock:
            place = next((i for i, job in enumerate(self._waiting) if job.status.run == run), 0)
            if place and all(map(self._may, self._waiting[place - 1 : place + 1])):
                self._waiting.insert(place - 1, self._waiting.pop(place))

    def cancel(self, run: str) -> None:
        """Take a training off the queue; one that runs stops and keeps what it has learned."""
        with self._lock:
            for job in [job for job in self._waiting if job.status.run == run and self._may(job)]:
                self._waiting.remove(job)
                job.leave("Taken off the queue; nothing was learned.")
                _remember(job, self._cancelled)
            now = self._running
        if now is not None and now.status.run == run and self._may(now):
            now.stopping.set()

    def stop(self) -> None:
        """Ask the running training to stop after its current step and keep what it has learned."""
        if (now := self._running) is not None and self._may(now):
            now.stopping.set()

    def keep_step(self, run: str, step: int) -> str:
        """Put the adapter as it was when pictures were drawn at a step into the library.

        Returns:
            Its name.

        Raises:
            LibraryError: there is none.
        """
        now = self.status(run)
        sample = now.sample(step) if now else None
        if now is None or sample is None or sample.adapter is None:
            raise LibraryError("Nothing was learned by that step; choose a later one.")
        with scratch(self._folder) as folder:
            path = Path(folder) / WEIGHTS_NAME
            write_adapter(path, sample.adapter)
            return self._library.add(path, f"{now.adapter_name[:48]} step {sample.step}")

    def close(self) -> None:
        """Empty the queue, stop the running training, and wait until its adapter is kept."""
        for now in self.waiting():
            self.cancel(now.run)
        self.stop()
        if (thread := self._thread) is not None:
            thread.join()

    def _place(self, job: TrainingJob) -> int:
        """How many of those that wait a new one comes after."""
        return len(self._waiting)

    def _may(self, job: TrainingJob) -> bool:
        """Whether whoever asks may see a training and decide on it."""
        return True

    def _begun(self) -> list[TrainingJob]:
        """Those that are over and known, then the one that runs."""
        with self._lock:
            return [*self._over, *([self._running] if self._running else [])]

    def _job(self, run: str) -> TrainingJob | None:
        with self._lock:
            running = [self._running] if self._running else []
            known = (*self._cancelled, *self._over, *running, *self._waiting)
        return next((job for job in known if job.status.run == run and self._may(job)), None)

    def _work(self) -> None:
        """Run one after the other until nothing waits."""
        job = self._running
        while job is not None:
            job.run()
            job = self._next()

    def _next(self) -> TrainingJob | None:
        with self._lock:
            assert self._running is not None
            _remember(self._running, self._over)
            self._running = self._waiting.pop(0) if self._waiting else None
            if self._running is None:
                self._thread = None
            return self._running


def _remember(job: TrainingJob, over: list[TrainingJob]) -> None:
    """Add a training to those that are over, so that one visitor's many push out no others'."""
    over.append(job)
    if len(over) > _REMEMBERED:
        del over[superfluous({place: job.visitor for place, job in enumerate(over)})]
