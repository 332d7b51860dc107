"""Nothing is fetched for visitors: Gradio would download any address that is named as a file."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from .posted import again, is_posted, posted
from .refusal import refuse


class LinkGate:
    """ASGI middleware that refuses JSON in which a file is an address of the web.

    Args:
        app: what takes the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_posted(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await posted(scope, receive)
        except ClientDisconnect:
            return
        if _names_link(body):
            await refuse(scope, receive, send, 422, "Upload the file; no addresses are fetched.")
            return
        await self._app(scope, again(body, receive), send)


def _names_link(body: bytes) -> bool:
    """Whether JSON names an address as the path of a file; what is no JSON does not."""
    try:
        remaining: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # nor will it be read as such
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
                return True
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value
    return False
