"""Which subjects go to a worker together, and what becomes of them where it dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from svfit_diffusion.fleet.subjects import FleetSubject

_DEATHS_TOGETHER = 2
"""After so many, a subject is trained by itself: the one that workers die of is found so."""


class Backlog:
    """Subjects that wait for a worker, in order of priority, then as they came.

    Args:
        subjects: all of them.
        per_pass: how many a worker gets at most.
        retries: how often one is given to another worker after the death of its own.
    """

    def __init__(self, subjects: Sequence[FleetSubject], per_pass: int, retries: int) -> None:
        self._per_pass = per_pass
        self._retries = retries
        self._deaths: Counter[str] = Counter()
        self._place = {subject.name: place for place, subject in enumerate(subjects)}
        self._waiting: list[FleetSubject] = []
        self._add(subjects)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, held: str, workers: int) -> list[FleetSubject]:
        """The subjects that a worker is to train next in one pass, no longer waiting.

        Among those of the highest priority it gets one for which its base is ready; and beside that
        one what can be trained in its pass, so many that other workers get their share.

        Args:
            held: the group for which the worker has its base ready; empty if for none.
            workers: how many there are.
        """
        if not self._waiting:
            return []
        first = self._first(held)
        if self._is_alone(first):
            pack = [first]
        else:
            share = -(-len(self._waiting) // workers)
            mates = [s for s in self._waiting if s.group == first.group and not self._is_alone(s)]
            pack = mates[: min(self._per_pass, share)]
            assert first in pack
        taken = {subject.name for subject in pack}
        self._waiting = [s for s in self._waiting if s.name not in taken]
        return pack

    def put_back(self, subjects: Sequence[FleetSubject]) -> list[FleetSubject]:
        """Let those wait again whose worker has died; those that are given up instead."""
        self._deaths.update(subject.name for subject in subjects)
        self._add([s for s in subjects if self._deaths[s.name] <= self._retries])
        return [s for s in subjects if self._deaths[s.name] > self._retries]

    def deaths(self, name: str) -> int:
        """How many workers have died that trained a subject."""
        return self._deaths[name]

    def _add(self, subjects: Sequence[FleetSubject]) -> None:
        self._waiting += subjects
        self._waiting.sort(key=lambda subject: (-subject.priority, self._place[subject.name]))

    def _first(self, held: str) -> FleetSubject:
        top = self._waiting[0]
        urgent = (s for s in self._waiting if s.priority == top.priority)
        return next((s for s in urgent if s.group == held), top)

    def _is_alone(self, subject: FleetSubject) -> bool:
        return self._deaths[subject.name] >= _DEATHS_TOGETHER
