"""Workers on Ray: hired, given subjects, looked at, and replaced where they die."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from svfit_diffusion.errors import ConfigError, StateError, clipped
from svfit_diffusion.fleet.cluster import places
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.fleet.worker import Seen, Worker

_TICK = 0.5  # seconds between looks
_GOODBYE = 10.0  # seconds in which workers clear up
_FALSE_STARTS = 3
_THREADS = 3  # of a worker: one trains, one answers, one stops that


@dataclass(frozen=True)
class Outcome:
    """What has become of subjects that a worker had.

    Attributes:
        pack: they.
        failures: why some cannot be trained, by name.
        death: why the worker has ended, if it has: some may be half done.
    """

    pack: list[FleetSubject]
    failures: Mapping[str, str] = field(default_factory=dict)
    death: str = ""


@dataclass
class Place:
    """Of a worker, and of its successors.

    Attributes:
        number: of it, from 0.
        actor: the worker.
        look: for its next answer to how far it is.
        seen: the last one; None until it is up.
        pack: what it trains.
        result: for what comes of that.
        group: of which its base is ready.
        moved: when it was last seen to get on with them, by `time.monotonic`.
    """

    number: int
    actor: Any
    look: Any
    seen: Seen | None = None
    pack: list[FleetSubject] = field(default_factory=list)
    result: Any = None
    group: str = ""
    moved: float = 0.0


class Crew:
    """The workers of a fleet.

    Args:
        ray: the package, connected to a cluster.
        store: address of the store.
        settings: how many workers, and what each has.

    Raises:
        ConfigError: the cluster has no room for them.

    Attributes:
        places: of the workers.
    """

    def __init__(self, ray: Any, store: str, settings: FleetSettings) -> None:
        self._ray = ray
        self._false_starts = 0
        self._hang_timeout = settings.hang_timeout
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room, gpus = places(machines, settings.cpus_per_worker)
        count = settings.workers or room
        if count > room and settings.address is None:
            raise ConfigError(
                f"this machine has room for {room} workers of {settings.cpus_per_worker} CPU cores "
                f"and {gpus} GPUs each, not for {count}: give fewer by --workers"
            )
        self._terms = ray.remote(Worker).options(
            num_cpus=settings.cpus_per_worker, num_gpus=gpus, max_concurrency=_THREADS
        )
        self._employer = store, settings.scratch
        self.places = [Place(number, *self._hire()) for number in range(count)]

    @property
    def is_busy(self) -> bool:
        """Whether one of them trains."""
        return any(place.result is not None for place in self.places)

    @property
    def idle(self) -> list[Place]:
        """Those that are up, and have nothing to train."""
        return [place for place in self.places if place.seen and place.result is None]

    def give(self, place: Place, pack: Sequence[FleetSubject]) -> None:
        """Have a worker that is idle train subjects of one group in one pass."""
        place.pack, place.group = list(pack), pack[0].group
        place.result = place.actor.train.remote(place.pack)
        place.moved = time.monotonic()

    def stop(self) -> None:
        """Have all end after the step under way."""
        for place in self.places:
            place.actor.stop.remote()

    def look(self) -> Iterator[tuple[Place, Seen | Outcome]]:
        """Wait a moment, or for the end of a pack; then what is new of each.

        Raises:
            StateError: workers end as soon as they begin.
        """
        results = [place.result for place in self.places if place.result is not None]
        beginnings = [place.look for place in self.places if place.seen is None]
        if expected := results + beginnings:
            self._ray.wait(expected, timeout=_TICK)
        for place in self.places:
            if place.result is not None and self._is_ready(place.result):
                yield place, self._outcome(place)
                continue
            if self._is_ready(place.look):
                yield from self._answer(place)
            if place.result is not None and self._hangs(place):
                pack = place.pack
                self._replace(place)
                yield place, Outcome(pack, death=f"no step in {self._hang_timeout:g} seconds")

    def dismiss(self) -> None:
        """Let all of them go, with what they worked with removed."""
        farewells = [place.actor.close.remote() for place in self.places]
        self._ray.wait(farewells, num_returns=len(farewells), timeout=_GOODBYE)
        for place in self.places:
            self._ray.kill(place.actor)

    def _hire(self) -> tuple[Any, Any]:
        actor = self._terms.remote(*self._employer)
        return actor, actor.seen.remote()

    def _replace(self, place: Place) -> None:
        """Hire another for a place."""
        if place.seen is None:
            self._false_starts += 1
        self._ray.kill(place.actor)
        place.actor, place.look = self._hire()
        place.seen, place.pack, place.result, place.group = None, [], None, ""

    def _hangs(self, place: Place) -> bool:
        return time.monotonic() - place.moved > self._hang_timeout

    def _is_ready(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def _outcome(self, place: Place) -> Outcome:
        pack = place.pack
        try:
            failures = self._ray.get(place.result)
        except self._ray.exceptions.RayError as error:
            self._replace(place)
            return Outcome(pack, death=_reason(error))
        place.pack, place.result = [], None
        return Outcome(pack, failures)

    def _answer(self, place: Place) -> Iterator[tuple[Place, Seen | Outcome]]:
        before = place.seen
        try:
            place.seen = self._ray.get(place.look)
        except self._ray.exceptions.RayError as error:
            if place.result is None:  # else that will tell
                self._replace(place)
                if self._false_starts > _FALSE_STARTS:
                    raise StateError(f"workers end as they begin: {_reason(error)}") from error
                yield place, Outcome([], death=_reason(error))
            return
        place.look = place.actor.seen.remote()
        if before is None or before.steps != place.seen.steps:
            place.moved = time.monotonic()
        yield place, place.seen


def _reason(error: BaseException) -> str:
    """Why a worker has ended, in a line: what was raised in it, or Ray's word for a death."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    name = type(cause).__name__
    return clipped(f"{name}: {lines[0]}" if lines else name)
