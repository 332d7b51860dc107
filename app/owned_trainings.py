"""Trainings as the present visitor may see and stop them: their own."""

from __future__ import annotations

from collections.abc import Sequence

from svfit_diffusion.training import TrainingConfig

from .errors import BusyError
from .photos import CroppedPhoto
from .training_job import TrainingJob
from .training_jobs import TrainingJobs
from .training_status import TrainingStatus
from .visitors import HOUSE, current_visitor

_WAITING = 2
"""Trainings of one visitor that may wait."""


class OwnedTrainings(TrainingJobs):
    """Trainings of which a visitor sees their own; of others', that they go on.

    Whoever runs the app sees and stops any.
    """

    def start(
        self, adapter_name: str, photos: Sequence[CroppedPhoto], config: TrainingConfig
    ) -> str:
        """As `TrainingJobs.start`; `BusyError` where enough of one's own are waiting."""
        if current_visitor().owner != HOUSE and len(self.waiting()) >= _WAITING:
            raise BusyError(
                f"{_WAITING} trainings of yours are waiting, as many as one visitor may have: "
                f"wait for one of them, or take it off."
            )
        return super().start(adapter_name, photos, config)

    def status(self, run: str | None = None) -> TrainingStatus | None:
        if run is not None:
            return super().status(run)
        begun = self._begun()
        own = [job for job in begun if self._may(job)]
        if own:
            return own[-1].status
        return begun[-1].status.from_elsewhere() if begun else None

    def waiting(self) -> list[TrainingStatus]:
        """One's own of those that wait for their turn, the next first."""
        with self._lock:
            return [job.status for job in self._waiting if self._may(job)]

    def _may(self, job: TrainingJob) -> bool:
        return current_visitor().owner in (job.visitor.owner, HOUSE)
