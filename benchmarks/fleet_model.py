"""A fleet of replicas as discrete events: requests, batches, caches of adapters."""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BATCH = 16
"""Most requests of a batch."""

_HOPELESS = 20 * BATCH  # that wait at one replica, where a fleet is too small

ROWS, ONE_ADAPTER, ONE_REQUEST = (
    "an adapter per row",
    "one adapter per batch",
    "one request at a time",
)
"""What a replica draws together: any requests, those of one subject, or none."""


@dataclass(frozen=True)
class Service:
    """Seconds that a replica takes, as measured.

    Attributes:
        per_batch: of a batch, for itself.
        per_row: of each request in it.
        switch: to set another adapter; 0 where each row has its own.
        load: to put an adapter on the pipeline that the cache had not.
        fetch: to fetch it from a store beside the drawing.
    """

    per_batch: float
    per_row: float
    switch: float
    load: float
    fetch: float


@dataclass(frozen=True)
class Fleet:
    """Replicas, and how they work.

    Attributes:
        replicas: how many.
        policy: what each draws together.
        service: what that takes.
        cached: adapters that each keeps.
        near: whether a request goes to one of two replicas of its subject's, unless both have a
            batch waiting; else to the shorter of any two, as Ray Serve sends it.
    """

    replicas: int
    policy: str
    service: Service
    cached: int
    near: bool


@dataclass(frozen=True)
class Outcome:
    """What came of requests.

    Attributes:
        latencies: seconds of each.
        misses: share of requests whose adapter was not in the replica's cache.
        batch: mean requests of a batch.
    """

    latencies: np.ndarray
    misses: float
    batch: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the requests take at most."""
        return float(np.percentile(self.latencies, percent, method="higher"))


class Cache:
    """Adapters that a replica keeps: those last asked for.

    It begins with the most popular ones, of which the least popular go first, so that it need not
    be filled by days of requests.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int) -> None:
        self._asked: OrderedDict[int, None] = OrderedDict()
        # Of the subjects below `_popular`, those that nobody has asked for yet are there, too.
        self._popular = self._unasked = capacity

    def has(self, subject: int) -> bool:
        """Whether an adapter is there; from now on it is."""
        found = subject in self._asked
        if not found and subject < self._popular:
            self._unasked -= 1
            found = True
        self._asked[subject] = None
        self._asked.move_to_end(subject)
        if not found:
            self._forget()
        return found

    def _forget(self) -> None:
        if not self._unasked:
            self._popular = 0
            self._asked.popitem(last=False)
            return
        self._popular -= 1
        while self._popular in self._asked:
            self._popular -= 1
        self._unasked -= 1


class Replica:
    """One replica: who waits, and which adapters it has.

    Args:
        cached: adapters that it keeps.
    """

    def __init__(self, cached: int) -> None:
        self.waiting: deque[tuple[float, int]] = deque()
        self.drawing = 0
        self.cache = Cache(cached)

    @property
    def load(self) -> int:
        """Requests that it has to answer."""
        return len(self.waiting) + self.drawing

    def take(self, policy: str) -> list[tuple[float, int]]:
        """The next batch."""
        if policy == ROWS:
            return [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
        first = self.waiting.popleft()
        if policy == ONE_REQUEST:
            return [first]
        alike = [request for request in self.waiting if request[1] == first[1]][: BATCH - 1]
        for request in alike:
            self.waiting.remove(request)
        return [first, *alike]


def zipf_subjects(count: int, of: int, exponent: float, seed: int) -> np.ndarray:
    """Subjects of requests, 0 the most popular, whose share falls as `1 / rank ** exponent`."""
    weights = np.arange(1, of + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    drawn = np.random.default_rng(seed).random(count) * cumulative[-1]
    return np.searchsorted(cumulative, drawn)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Times of requests that come independently of each other, ascending."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, int(rate * seconds * 1.1) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def simulate(
    fleet: Fleet, arrivals: np.ndarray, subjects: np.ndarray, warm_up: float = 0.0, seed: int = 0
) -> Outcome:
    """Let requests arrive at a fleet, and all be answered, unless it is far too small for them:
    then latencies are infinite.

    Args:
        fleet: the replicas, whose caches begin with the most popular subjects.
        arrivals: seconds, ascending.
        subjects: of each.
        warm_up: seconds of which the requests do not count.
        seed: of the choice of replicas.
    """
    choice, service = random.Random(seed), fleet.service
    replicas = [Replica(fleet.cached) for _ in range(fleet.replicas)]
    ends: list[tuple[float, int, list[tuple[float, int]]]] = []
    latencies: list[float] = []
    misses = lookups = batches = 0

    def begin(index: int, now: float) -> None:
        nonlocal misses, lookups, batches
        batch = replicas[index].take(fleet.policy)
        wanted = list(dict.fromkeys(subject for _, subject in batch))
        missing = sum(not replicas[index].cache.has(subject) for subject in wanted)
        seconds = service.per_batch + service.per_row * len(batch)
        seconds += service.switch * (fleet.policy != ROWS) + service.load * missing
        misses, lookups, batches = misses + missing, lookups + len(wanted), batches + 1
        replicas[index].drawing = len(batch)
        heapq.heappush(ends, (now + seconds + (service.fetch if missing else 0), index, batch))

    def end_until(time: float) -> None:
        while ends and ends[0][0] <= time:
            now, index, batch = heapq.heappop(ends)
            latencies.extend(now - came for came, _ in batch if came >= warm_up)
            replicas[index].drawing = 0
            if replicas[index].waiting:
                begin(index, now)

    for came, subject in zip(arrivals.tolist(), subjects.tolist(), strict=True):
        end_until(came)
        index = _route(fleet, replicas, subject, choice)
        replicas[index].waiting.append((came, subject))
        if len(replicas[index].waiting) > _HOPELESS:
            return Outcome(np.array([math.inf]), math.nan, math.nan)
        if not replicas[index].drawing:
            begin(index, came)
    end_until(float("inf"))
    return Outcome(
        np.array(latencies),
        misses / lookups,
        len(arrivals) / batches,
    )


def _route(fleet: Fleet, replicas: Sequence[Replica], subject: int, choice: random.Random) -> int:
    """The replica that a request goes to."""
    if fleet.near:
        # Two places of a subject's that any router computes alike.
        pair = [(subject * odd + 1) % 2**31 % len(replicas) for odd in (2654435761, 40503)]
        best = min(pair, key=lambda index: replicas[index].load)
        if replicas[best].load < 2 * BATCH:
            return best
    pair = [choice.randrange(len(replicas)) for _ in range(2)]
    return min(pair, key=lambda index: replicas[index].load)
