"""Ctrl-C and SIGTERM: what is under way ends well, unless one insists."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_NOTED = b"\nStopping once what was learned is kept; Ctrl-C again ends at once.\n"


class Stop(KeyboardInterrupt):
    """Raised by the first Ctrl-C or SIGTERM where there is nothing to finish first."""


class Interrupts:
    """While entered, a Ctrl-C or SIGTERM is noted; a second Ctrl-C raises `KeyboardInterrupt`.

    In other threads than the main one, signals never arrive, and nothing is done.

    Attributes:
        noted: whether one has come.
    """

    def __init__(self) -> None:
        self.noted = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done within may be left anywhere: a signal raises `Stop`, also one noted."""
        try:
            self._at_once = True
            if self.noted:
                raise Stop
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.noted:
            # Launchers send SIGTERM after a Ctrl-C; people press the same again.
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.noted = True
        if self._at_once:
            raise Stop
        os.write(2, _NOTED)  # print is not to be entered twice
