"""Trainings as the present visitor may see and stop them: their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from svfit_diffusion.training import TrainingConfig

from .errors import AppError
from .training_jobs import TrainingJobs
from .training_status import TrainingStatus
from .visitors import HOUSE, current_visitor

_REMEMBERED = 20
"""Visitors whose last training is kept to look at."""


class OwnedTrainings(TrainingJobs):
    """Trainings of which a visitor sees their own; of others', that they go on.

    Whoever runs the app sees and stops any.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._last: dict[str, TrainingStatus] = {}

    def start(
        self, adapter_name: str, squares: Sequence[Image.Image], config: TrainingConfig
    ) -> None:
        if self._is_busy() and not self._is_ones_own():
            raise AppError(
                "Another visitor's training is under way, and one training runs at a time: wait "
                "until it has finished."
            )
        self._remember()
        super().start(adapter_name, squares, config)

    def stop(self) -> None:
        if self._is_ones_own():
            super().stop()

    def status(self) -> TrainingStatus | None:
        if self._job is None or self._is_ones_own():
            return super().status()
        return self._last.get(current_visitor().owner) or self._job.status.from_elsewhere()

    def _is_busy(self) -> bool:
        return self._job is not None and self._job.is_alive()

    def _is_ones_own(self) -> bool:
        return self._job is not None and current_visitor().owner in (
            self._job.visitor.owner,
            HOUSE,
        )

    def _remember(self) -> None:
        """Keep what the training before came to, for who started it."""
        if self._job is None or self._is_busy():
            return
        self._last.pop(self._job.visitor.owner, None)
        self._last[self._job.visitor.owner] = self._job.status
        while len(self._last) > _REMEMBERED:
            del self._last[next(iter(self._last))]
