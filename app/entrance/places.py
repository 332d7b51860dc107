"""Places in Gradio's queue: nobody takes all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import Limits
from ..visitors import BEHIND_ONE_ADDRESS, Visitor, visitor_of
from .refusal import refuse

_BESIDE_PICTURES = 5  # what a page asks for while pictures are drawn

QUEUE_SIZE = 200
"""Places in Gradio's queue; an address takes a fraction of them."""


class Places:
    """ASGI middleware that bounds how many events a visitor, and an address, has in the queue.

    Args:
        app: what takes them in.
        limits: on pictures, whose line bounds them more closely.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._most = limits.max_places + _BESIDE_PICTURES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _joins(scope) and self._is_full(scope):
            why = "You have asked for more than is done at once; wait for some of it."
            await refuse(scope, receive, send, 429, why)
        else:
            await self._app(scope, receive, send)

    def _is_full(self, scope: Scope) -> bool:
        visitor = visitor_of(scope)
        there = list(_in_queue(scope["app"].get_blocks()._queue))
        own = sum(other.id == visitor.id for other in there)
        near = sum(other.address == visitor.address for other in there)
        return own >= self._most or near >= self._most * BEHIND_ONE_ADDRESS


def _joins(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return scope["path"].rstrip("/").endswith("/queue/join") or "/call/" in scope["path"]


def _in_queue(queue: Any) -> Iterator[Visitor]:
    """Whose events wait or are worked on; Gradio tells it in no other way."""
    waiting = (line.queue for line in queue.event_queue_per_concurrency_id.values())
    working = (job for job in queue.active_jobs if job)
    for events in (*waiting, *working):
        yield from (visitor_of(event.request.scope) for event in events)
