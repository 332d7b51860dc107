"""Visits: what visitors ask for, in portions that fit into batches, and the events each gets."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue

from PIL import Image

from .errors import BusyError
from .picture import PictureSettings
from .visitors import Visitor

_PATIENCE = 0.5
"""Seconds without an event after which a visitor gets `Waiting`."""

_ABSENCE = 10.0
"""Seconds for which nobody has listened after which a visit ends; lines that break come back."""


@dataclass(frozen=True)
class Progress:
    """How far the pictures at hand have come.

    Attributes:
        batch: which batch of the visitor's pictures is being drawn, from 1.
        batches: how many there are.
        step: sampling steps done in this batch; 0 while adapters are being loaded.
        steps: sampling steps of this batch.
        previews: the visitor's forming pictures of the batch, at some steps; else empty.
    """

    batch: int
    batches: int
    step: int
    steps: int
    previews: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        index: its place among those asked for.
        settings: what it was drawn with.
        image: RGB.
    """

    index: int
    settings: PictureSettings
    image: Image.Image


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a moment. It comes so that a visitor may leave meanwhile: Python
    cannot close an iterator that is being waited on.
    """


Event = Waiting | Progress | Picture


class Visit:
    """One visitor's stream of events, and how much of it is still to come.

    Attributes:
        visitor: whose it is.
        over: set once the visitor has left or something has failed.
    """

    def __init__(self, visitor: Visitor, portions: int) -> None:
        self.visitor = visitor
        self._last_heard = time.monotonic()
        self._events: SimpleQueue[Event | Exception | None] = SimpleQueue()
        self.over = threading.Event()
        self._portions_left = portions

    def stream(self) -> Iterator[Event]:
        """What happens, until the last portion is finished. Closing it ends the visit.

        Raises:
            BusyError: nobody has listened for a while.
            Exception: whatever the visit failed with.
        """
        try:
            while (event := self._next()) is not None:
                self._leave_if_alone()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.over.set()

    def emit(self, event: Event) -> None:
        """Tell the visitor, unless the visit is over."""
        if not self.over.is_set():
            self._events.put(event)

    def finish_portion(self) -> None:
        """Count a portion as finished; the stream ends after the last."""
        self._portions_left -= 1
        if not self._portions_left:
            self._events.put(None)

    def fail(self, error: Exception) -> None:
        """End the visit with an error, raised out of the stream."""
        self.over.set()
        self._events.put(error)

    def _leave_if_alone(self) -> None:
        now = time.monotonic()
        if self.visitor.is_listening():
            self._last_heard = now
        elif now - self._last_heard > _ABSENCE:
            raise BusyError("Nobody listens any more, so no more is drawn.")

    def _next(self) -> Event | Exception | None:
        try:
            return self._events.get(timeout=_PATIENCE)
        except Empty:
            return Waiting()


@dataclass(frozen=True, eq=False)
class Portion:
    """Pictures of one visitor that are drawn in one batch, perhaps with others' portions.

    Attributes:
        visit: whose they are.
        number: which portion of the visitor's, from 1.
        count: how many portions the visitor has.
        indices: the pictures' places among those asked for.
        wanted: the pictures, which differ in prompt, adapters and seed only.
    """

    visit: Visit
    number: int
    count: int
    indices: list[int]
    wanted: list[PictureSettings]

    @property
    def common(self) -> str:
        """What portions must have in common to be drawn in one batch."""
        return _common(self.wanted[0])

    def progress(self, step: int, steps: int, previews: tuple[Image.Image, ...] = ()) -> None:
        """Tell the visitor how far the batch has come."""
        self.visit.emit(Progress(self.number, self.count, step, steps, previews))

    def finish(self, images: Sequence[Image.Image]) -> None:
        """Hand the finished pictures over, in the order of `wanted`."""
        for index, settings, image in zip(self.indices, self.wanted, images, strict=True):
            self.visit.emit(Picture(index, settings, image))
        self.visit.finish_portion()


def in_portions(visitor: Visitor, wanted: Sequence[PictureSettings], size: int) -> list[Portion]:
    """A visitor's pictures by the batches they go into, at most `size` each, in order."""
    groups: dict[str, list[int]] = {}
    for index, settings in enumerate(wanted):
        groups.setdefault(_common(settings), []).append(index)
    batches = [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]
    visit = Visit(visitor, len(batches))
    return [
        Portion(visit, number, len(batches), indices, [wanted[index] for index in indices])
        for number, indices in enumerate(batches, 1)
    ]


def shares(
    batch: list[Portion], images: Sequence[Image.Image]
) -> Iterator[tuple[Image.Image, ...]]:
    """Each portion's part of a batch's images; of none, none."""
    remaining = iter(images)
    for portion in batch:
        yield tuple(islice(remaining, len(portion.wanted)))


def _common(settings: PictureSettings) -> str:
    """The settings that pictures of one batch share."""
    return repr(dataclasses.replace(settings, prompt="", adapters={}, seed=0))
