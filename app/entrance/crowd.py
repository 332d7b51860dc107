"""How many requests are worked on at once, so that nobody takes all there is."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from ..visitors import BEHIND_ONE_ADDRESS, visitor_of
from .refusal import refuse

_AT_ONCE = 32  # browsers open six connections


class Crowd:
    """ASGI middleware that bounds what a visitor, and an address, has done at once.

    Args:
        app: what does it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visitor = visitor_of(scope)
        bounds = {visitor.id: _AT_ONCE, visitor.address: _AT_ONCE * BEHIND_ONE_ADDRESS}
        if any(self._under_way[who] >= most for who, most in bounds.items()):
            await refuse(scope, receive, send, 429, "Too much at once; wait for what is under way.")
            return
        self._under_way.update(bounds.keys())
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way.subtract(bounds.keys())
            self._under_way += Counter()  # forgets those who are through
