"""Nothing is fetched for visitors: Gradio would download any address that is named as a file."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusal import refuse

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class LinkGate:
    """ASGI middleware that refuses JSON in which a file is an address of the web.

    It reads the whole of it, so it belongs behind `BodyBounds`.

    Args:
        app: what takes the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _is_form(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        if _names_link(body):
            await refuse(scope, receive, send, 422, "Upload the file; no addresses are fetched.")
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, again, send)


def _is_form(scope: Scope) -> bool:
    return Headers(scope=scope).get("content-type", "").lower().startswith(_FORMS)


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
