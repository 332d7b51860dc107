"""Gradio's sessions: their names, which browsers make up, hold for one visitor each.

Whoever knows the name of a session could read what it is told and what its page holds, and cancel
what it waits for. So Gradio gets another name, made of the visitor and the one the browser has: the
same name said by someone else is another session.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from gradio.route_utils import API_PREFIX
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..visitors import Visitor, visitor_of
from .posted import again, is_posted, posted
from .refusal import refuse

_NAMES = ("session_hash", "upload_id")
_HEARTBEAT = f"{API_PREFIX}/heartbeat/"


class Sessions:
    """ASGI middleware that gives each visitor names of sessions and uploads of their own.

    Args:
        app: Gradio's, and what goes by the names it has.
        tell: called with the name that Gradio has for a session about to be used, and whose it is.
    """

    def __init__(self, app: ASGIApp, tell: Callable[[str, Visitor], None]) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visitor = visitor_of(scope)
        scope = _renamed(scope, visitor.id)
        if is_posted(scope):
            try:
                body, session = _renamed_json(await posted(scope, receive), visitor.id)
            except ClientDisconnect:
                return
            except (ValueError, RecursionError):
                await refuse(scope, receive, send, 422, "A request of this kind is JSON.")
                return
            if session is not None:
                self._tell(session, visitor)
            receive = again(body, receive)
        await self._app(scope, receive, send)


def own_name(visitor: str, name: str) -> str:
    """What Gradio is to call a session.

    Args:
        visitor: `Visitor.id`, which nobody else is told.
        name: what the visitor calls it.
    """
    return hashlib.sha256(json.dumps([visitor, name]).encode()).hexdigest()[:32]


def _renamed(scope: Scope, visitor: str) -> Scope:
    """A request whose path and query have the visitor's own names."""
    if scope["path"].startswith(_HEARTBEAT):
        path = _HEARTBEAT + own_name(visitor, scope["path"].removeprefix(_HEARTBEAT))
        scope = {**scope, "path": path, "raw_path": path.encode()}
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if any(key in _NAMES for key, _ in query):
        own = [(key, own_name(visitor, v) if key in _NAMES else v) for key, v in query]
        scope = {**scope, "query_string": urlencode(own).encode()}
    return scope


def _renamed_json(body: bytes, visitor: str) -> tuple[bytes, str | None]:
    """JSON with the visitor's own names, written anew lest it can be read in two ways, and the name
    of the session, if it is of one.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    if not body:
        return body, None
    value: Any = json.loads(body)
    if not isinstance(value, dict) or not any(name in value for name in _NAMES):
        return body, None
    own = {n: own_name(visitor, str(v)) for n, v in value.items() if n in _NAMES and v is not None}
    return json.dumps(value | own).encode(), own.get("session_hash")
