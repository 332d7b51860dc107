"""Trainings as the present visitor may see and stop them: their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from svfit_diffusion.training import TrainingConfig

from .errors import BusyError
from .fairness import of_address
from .photos import CroppedPhoto
from .training_job import TrainingJob
from .training_jobs import TrainingJobs
from .training_status import TrainingStatus
from .visitors import HOUSE, Visitor, current_visitor

_WAITING = 2
"""Trainings of one visitor that may wait."""


class OwnedTrainings(TrainingJobs):
    """Trainings of which a visitor sees their own; of others', that they go on.

    Whoever runs the app sees and stops any.
    """

    def start(
        self, adapter_name: str, photos: Sequence[CroppedPhoto], config: TrainingConfig
    ) -> str:
        """As `TrainingJobs.start`; `BusyError` where enough of one's own are waiting, or of those
        who come from the same address.
        """
        visitor = current_visitor()
        if visitor.owner != HOUSE:
            self._check_share(visitor)
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

    def _check_share(self, visitor: Visitor) -> None:
        if len(self.waiting()) >= _WAITING:
            raise BusyError(
                f"{_WAITING} trainings of yours are waiting, as many as one visitor may have: "
                f"wait for one of them, or take it off."
            )
        with self._lock:
            near = sum(job.visitor.address == visitor.address for job in self._waiting)
        if near >= of_address(_WAITING, self._limits.max_waiting_trainings):
            raise BusyError("Too many trainings wait from where you are; try again later.")

    def _place(self, job: TrainingJob) -> int:
        """Everyone's first comes before anyone's second, which the one that runs is where more of
        the same visitor's wait.
        """
        ahead = Counter([self._running.visitor.id] if self._running else [])
        turns = []
        for waiting in self._waiting:
            turns.append(ahead[waiting.visitor.id])
            ahead[waiting.visitor.id] += 1
        own = ahead[job.visitor.id]
        return max((place for place, turn in enumerate(turns, 1) if turn <= own), default=0)

    def _may(self, job: TrainingJob) -> bool:
        return current_visitor().owner in (job.visitor.owner, HOUSE)
