"""Has workers train the subjects of a fleet: who gets which, and what if one dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from svfit_diffusion.fleet.cluster import connected
from svfit_diffusion.fleet.crew import Crew, Outcome, Place
from svfit_diffusion.fleet.gauges import Gauges
from svfit_diffusion.fleet.lease import Lease
from svfit_diffusion.fleet.ledger import Ledger
from svfit_diffusion.fleet.packing import Backlog
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.fleet.worker import Seen
from svfit_diffusion.training.signals import Interrupts


@dataclass(frozen=True)
class Finished:
    """A subject is done; its record says what it took."""

    name: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A subject cannot be trained."""

    name: str
    reason: str


@dataclass(frozen=True)
class Died:
    """A worker has ended, and another takes its place; these subjects wait again."""

    worker: int
    names: list[str]
    reason: str


@dataclass(frozen=True)
class Looked:
    """A worker has said how far it is."""

    worker: int
    seen: Seen


News = Finished | Failed | Died | Looked


class Fleet:
    """Subjects, and who trains them.

        fleet = Fleet(subjects, settings)
        for news in fleet.news():
            print(news)

    Args:
        subjects: all of them; those that the store has as done are not trained again.
        settings: how they are spread over workers.

    Raises:
        ConfigError: the store is of no known kind, or has a subject with other settings.
        StorageError: the store cannot be reached or written.

    Attributes:
        store: where all of it is kept.
        ledger: what has become of each.
        backlog: those that wait.
        interrupts: once one is noted, be it a signal, workers stop with what they have learned in
            the store.
    """

    def __init__(self, subjects: Sequence[FleetSubject], settings: FleetSettings) -> None:
        self.interrupts = Interrupts()
        self._settings = settings
        self.store = Store(settings.output)
        self.ledger = Ledger(subjects, self.store)
        self.backlog = Backlog(self.ledger.open, settings.subjects_per_pass, settings.retries)

    def news(self) -> Iterator[News]:
        """Train all that wait, or until stopped: what happens, as it does.

        Raises:
            PackageError: Ray is not installed.
            ConfigError: the cluster is not there, or has no room for the workers.
            StateError: another command trains into the store, or workers end as they begin.
            StorageError: the store cannot be reached.
        """
        if not self.backlog:
            return
        # Interrupts last, as Ray has a way with signals of its own.
        with (
            Lease(self.store) as lease,
            connected(self._settings.address) as ray,
            self.interrupts,
        ):
            crew = Crew(ray, self.store.address, self._settings)
            gauges = Gauges()
            try:
                for news in self.work(crew, lease):
                    gauges.show_subjects(self.counts)
                    if isinstance(news, Looked):
                        gauges.show_steps(news.worker, news.seen.steps)
                    yield news
            finally:
                self.ledger.write_costs()
                crew.dismiss()

    @property
    def counts(self) -> dict[str, int]:
        """How many subjects are done, failed, waiting and in training."""
        done, failed = len(self.ledger.records), len(self.ledger.failures)
        waiting = len(self.backlog)
        training = len(self.ledger) - done - failed - waiting
        return {"done": done, "failed": failed, "waiting": waiting, "training": training}

    def work(self, crew: Crew, lease: Lease) -> Iterator[News]:
        """As `news`, by workers that are there, in a store that others are kept out of."""
        told = False
        while crew.is_busy or (self.backlog and not self.interrupts.noted):
            if not self.interrupts.noted:
                for place in crew.idle:
                    if pack := self.backlog.take(place.group, len(crew.places)):
                        crew.give(place, pack)
            elif not told:
                crew.stop()
                told = True
            lease.renew()
            for place, found in crew.look():
                if isinstance(found, Seen):
                    yield Looked(place.number, found)
                else:
                    yield from self._settle(place, found)

    def _settle(self, place: Place, outcome: Outcome) -> Iterator[News]:
        """Note what has become of a pack; what a death has left undone waits again."""
        self.ledger.settle(outcome.pack, outcome.failures)
        undone = {subject.name for subject in self.ledger.open}
        left = [subject for subject in outcome.pack if subject.name in undone]
        if outcome.death:
            yield Died(place.number, [subject.name for subject in left], outcome.death)
            for subject in self.backlog.put_back(left):
                deaths = self.backlog.deaths(subject.name)
                self.ledger.failures[subject.name] = (
                    f"{deaths} workers ended while they trained it, the last: {outcome.death}"
                )
        for subject in outcome.pack:
            if record := self.ledger.records.get(subject.name):
                yield Finished(subject.name, record)
            elif reason := self.ledger.failures.get(subject.name):
                yield Failed(subject.name, reason)
