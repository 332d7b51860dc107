"""The engine of a server: pictures that wait are drawn in batches, each with its own adapters."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from torch import Tensor

from svfit_diffusion.errors import ConfigError, StateError
from svfit_diffusion.serving.drawing import Drawing
from svfit_diffusion.serving.line import Line, LineLimits, Ticket
from svfit_diffusion.serving.painting import Painter
from svfit_diffusion.serving.picture import Picture
from svfit_diffusion.serving.shelf import Shelf

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Observer(Protocol):
    """Who is told what the engine does, by the thread that draws."""

    def drawn(self, pictures: int, seconds: float) -> None:
        """A batch is done."""

    def begun(self, waited: float) -> None:
        """A picture that waited for so many seconds is being drawn."""


class Engine:
    """Draws pictures on a pipeline, whoever asks: one thread, to which the pipeline belongs.

    Args:
        pipe: the base model, where it is to draw, without adapters.
        shelf: of adapters on that pipeline.
        limits: of the line of those who wait.
        observer: who is told.

    Raises:
        ConfigError: the base does not draw pictures from prompts alone.

    Attributes:
        drawing: how the base model draws.
        shelf: as given.
    """

    def __init__(
        self,
        pipe: Any,
        shelf: Shelf,
        limits: LineLimits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.drawing = Drawing(pipe)
        self.shelf = shelf
        self._painter = Painter(pipe, self.drawing)
        self._line = Line(limits or LineLimits())
        self._observer = observer
        self._errands: deque[Callable[[], None]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many pictures wait."""
        return len(self._line)

    @property
    def is_alive(self) -> bool:
        """Whether it draws what it is asked for."""
        return self._thread.is_alive() and not self._closed

    def submit(self, pictures: Sequence[Picture], client: str = "") -> list[Ticket]:
        """Let pictures wait, all of them or none; each ticket gets its own picture or error.

        Args:
            pictures: of one request.
            client: whose request it is; turns go round between clients.

        Raises:
            AdapterNameError: there is no adapter of such a name.
            BusyError: too many wait.
            CheckpointError: an adapter's file is damaged.
            ConfigError: a picture's size cannot be drawn.
            StateError: the engine was closed.
            StorageError: the library cannot be reached.
        """
        for picture in pictures:
            self._check_size(picture)
        wanted = {
            name: self.shelf.fetch(name)
            for name in dict.fromkeys(name for p in pictures for name in p.adapters)
        }
        tickets = [Ticket(p, {name: wanted[name] for name in p.adapters}, client) for p in pictures]
        self._line.join(tickets)
        return tickets

    def between(self, errand: Callable[[], _T]) -> Future[_T]:
        """Run something that needs the pipeline, before the next batch."""
        future: Future[_T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(errand())
                except Exception as error:
                    future.set_exception(error)

        self._errands.append(run)
        self._line.wake()
        return future

    def close(self) -> None:
        """Draw no more after the batch at hand; who waits gets `StateError`. Idempotent."""
        self._closed = True
        for ticket in self._line.close():
            ticket.fail(StateError("the server was stopped"))
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            batch = self._line.take()
            while self._errands:
                self._errands.popleft()()
            if batch:
                self._draw_ready(batch)

    def _draw_ready(self, batch: Sequence[Ticket]) -> None:
        """Draw those pictures of a batch whose adapters can be had."""
        ready, mixes = [], []
        for ticket in batch:
            try:
                labels = {name: self.shelf.put(own) for name, own in ticket.wanted.items()}
            except Exception as error:
                ticket.fail(error)
                continue
            ready.append(ticket)
            mixes.append({labels[name]: w for name, w in ticket.picture.adapters.items()})
        if ready:
            self._draw(ready, mixes)
        try:
            self.shelf.make_room()
        except Exception:  # the next batch tries again, and must be drawn
            logger.exception("adapters could not be taken off")

    def _draw(self, batch: Sequence[Ticket], mixes: Sequence[dict[str, float]]) -> None:
        """Draw pictures together; where that fails, each alone, so that one fails no other."""
        began = time.monotonic()

        def watch(_: int, __: Tensor) -> None:
            if all(ticket.left.is_set() for ticket in batch):
                raise _AllLeftError

        try:
            images = self._painter.paint([ticket.picture for ticket in batch], mixes, watch)
        except _AllLeftError:
            return
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            logger.warning("a batch of %d failed, and is drawn one by one", len(batch))
            for ticket, mix in zip(batch, mixes, strict=True):
                self._draw([ticket], [mix])
            return
        for ticket, image in zip(batch, images, strict=True):
            ticket.hand_over(image)
        self._report(batch, began)

    def _report(self, batch: Sequence[Ticket], began: float) -> None:
        if self._observer is not None:
            self._observer.drawn(len(batch), time.monotonic() - began)
            for ticket in batch:
                self._observer.begun(began - ticket.arrived)

    def _check_size(self, picture: Picture) -> None:
        multiple = self.drawing.size_multiple
        if picture.width % multiple or picture.height % multiple:
            raise ConfigError(
                f"got a size of {picture.width}x{picture.height}; both sides must be multiples of "
                f"{multiple} pixels on this base model"
            )


class _AllLeftError(Exception):
    """Nobody waits for the pictures that are being drawn."""
