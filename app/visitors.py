"""Visitors: who asks, whether they are still there, and in whose name something is done.

`entrance.recognition` says whose a request is. Gradio keeps the request at hand while it works on
an event of it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from gradio.context import LocalContext

HOUSE = "house"
"""Owner of all that nobody else owns; whoever runs the app."""

BEHIND_ONE_ADDRESS = 4
"""An address may take as much as so many visitors: a household, and no crowd of one."""

KEY = "svfit.visitor"
"""Where a request's scope names its visitor."""


class Listeners:
    """Counts who listens to what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, name: str) -> Iterator[None]:
        """Someone listens within this block."""
        with self._lock:
            self._open[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._open


@dataclass(frozen=True)
class Visitor:
    """Someone who asks for something.

    Attributes:
        id: what tells one visitor from the others.
        address: where they come from; several may come from one.
        owner: whose things they may change: their own, or the house's.
        listeners: who listens; None where that does not matter.
        names: under any of which this visitor would be listening.
    """

    id: str
    address: str
    owner: str
    listeners: Listeners | None = None
    names: tuple[str, ...] = ()

    def is_listening(self) -> bool:
        """Whether they are there to hear what comes of it."""
        return self.listeners is None or any(name in self.listeners for name in self.names)


_HOUSE = Visitor(HOUSE, "", HOUSE)
STRANGER = Visitor("stranger", "", "stranger")
"""Someone who has nothing here, as whom pages are built for all."""

_acting: ContextVar[Visitor | None] = ContextVar("acting", default=None)


def visitor_of(scope: Any) -> Visitor:
    """Whose a request is, by its ASGI scope; the house's where nobody has said."""
    visitor: Visitor = scope.get(KEY, _HOUSE)
    return visitor


def current_visitor() -> Visitor:
    """In whose name the present code runs: of `acting_as`, of a request, or of the house."""
    visitor = _acting.get()
    if visitor is not None:
        return visitor
    request = LocalContext.request.get(None)
    scope = getattr(getattr(request, "request", None), "scope", None)
    if request is None or scope is None or KEY not in scope:
        return _HOUSE
    known = visitor_of(scope)
    names = (request.session_hash, LocalContext.event_id.get(None))
    return replace(known, names=tuple(filter(None, names)))


@contextmanager
def acting_as(visitor: Visitor) -> Iterator[None]:
    """Do what is in this block in a visitor's name."""
    token = _acting.set(visitor)
    try:
        yield
    finally:
        _acting.reset(token)
