"""Who listens: the streams of events that are open, by the names that Gradio has for them."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from ..visitors import visitor_of


class Listening:
    """ASGI middleware that counts the streams of events that are open.

    Args:
        app: what streams them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, listeners = _stream(scope), visitor_of(scope).listeners
        if name is None or listeners is None:
            await self._app(scope, receive, send)
            return
        with listeners.one_more(name):
            await self._app(scope, receive, send)


def _stream(scope: Scope) -> str | None:
    """The session or event whose stream a request asks for."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    path = scope["path"].rstrip("/")
    if path.endswith("/queue/data"):
        return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
    return path.rpartition("/")[2] if "/call/" in path else None
