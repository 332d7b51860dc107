"""The line of pictures that wait: who may join it, and which come next."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from PIL import Image

from svfit_diffusion.errors import BusyError, StateError
from svfit_diffusion.serving.picture import Picture
from svfit_diffusion.serving.shelf import Wanted
from svfit_diffusion.serving.turns import Turns


@dataclass(frozen=True, eq=False)
class Ticket:
    """A picture that somebody waits for.

    Attributes:
        picture: what is to be drawn.
        wanted: the adapters of the picture, by name.
        client: who waits.
        image: the drawn picture, or why there is none.
        left: set when nobody waits for it any more.
        arrived: seconds of `time.monotonic`.
    """

    picture: Picture
    wanted: Mapping[str, Wanted]
    client: str
    image: Future[Image.Image] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)

    def leave(self) -> None:
        """Wait no more: it is not drawn unless it has been."""
        self.left.set()
        self.image.cancel()

    def hand_over(self, image: Image.Image) -> None:
        """The picture is there."""
        if self.image.set_running_or_notify_cancel():
            self.image.set_result(image)

    def fail(self, error: Exception) -> None:
        """There will be no picture."""
        if self.image.set_running_or_notify_cancel():
            self.image.set_exception(error)


@dataclass(frozen=True)
class LineLimits:
    """How much may wait, and be drawn together.

    Attributes:
        batch: most pictures of a batch.
        waiting: most pictures that wait.
        of_a_client: most pictures of one client that wait.
        linger: seconds for which a batch that has room waits for company.
    """

    batch: int = 16
    waiting: int = 256
    of_a_client: int = 64
    linger: float = 0.02


class Line:
    """Pictures that wait.

    Args:
        limits: of the line.
    """

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._turns: Turns[Ticket] = Turns(lambda ticket: ticket.client)
        self._woken = False
        self._closed = False

    def __len__(self) -> int:
        """How many pictures wait."""
        return len(self._waiting)

    def join(self, tickets: Sequence[Ticket]) -> None:
        """Let the pictures of one request wait, all of them or none.

        Raises:
            BusyError: there is no room for them.
            StateError: the line was closed.
        """
        with self._changed:
            if self._closed:
                raise StateError("the server is being stopped, and draws no more")
            self._drop_the_left()
            self._check(tickets)
            self._waiting += tickets
            self._changed.notify_all()

    def wake(self) -> None:
        """Let `take` return, though nobody may wait."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> list[Ticket]:
        """Let nobody wait any more, and return who did."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        return waiting

    def take(self) -> list[Ticket]:
        """Wait for pictures, and take those of the next batch; none after `wake` or `close`.

        The first is the one whose turn it is; with it go those that may share its batch, in turn,
        as far as there is room. A batch with room left waits a moment for company.
        """
        with self._changed:
            while True:
                self._drop_the_left()
                batch = self._next_batch()
                patience = self._patience(batch)
                if self._woken or self._closed or patience == 0:
                    break
                self._changed.wait(patience)
            if self._woken or self._closed:
                self._woken = False
                return []
            self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
            self._turns.note(batch, self._waiting)
            return batch

    def _check(self, tickets: Sequence[Ticket]) -> None:
        limits, own = self._limits, len(tickets)
        of_client = sum(other.client == tickets[0].client for other in self._waiting)
        if of_client + own > limits.of_a_client:
            raise BusyError(
                f"{of_client} of your pictures wait already, and with {own} more it would be more "
                f"than the {limits.of_a_client} that one client may have: wait for some of them"
            )
        if len(self._waiting) + own > limits.waiting:
            raise BusyError(
                f"{len(self._waiting)} pictures wait here, and there is room for "
                f"{limits.waiting}: try again soon"
            )

    def _drop_the_left(self) -> None:
        self._waiting = [ticket for ticket in self._waiting if not ticket.left.is_set()]

    def _next_batch(self) -> list[Ticket]:
        ordered = self._turns.in_order(self._waiting)
        fitting = [t for t in ordered if t.picture.common == ordered[0].picture.common]
        return fitting[: self._limits.batch]

    def _patience(self, batch: list[Ticket]) -> float | None:
        """Seconds that a batch still waits for company; None where there is nothing to draw."""
        if not batch:
            return None
        if len(batch) >= self._limits.batch:
            return 0
        since = min(ticket.arrived for ticket in batch)
        return max(0, since + self._limits.linger - time.monotonic())
