"""What browsers are told of the app's answers: who may show them, and to take them as they are."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Framing:
    """ASGI middleware that lets no other site show the app in a frame, or its pictures in a page.

    Args:
        app: whose answers they are.
        framed_by: origins of the sites that may, such as `https://example.org`.
    """

    def __init__(self, app: ASGIApp, framed_by: Sequence[str] = ()) -> None:
        self._app = app
        ancestors = " ".join(("'self'", *framed_by)) if framed_by else "'none'"
        self._headers = {
            "Content-Security-Policy": f"frame-ancestors {ancestors}",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        }
        if not framed_by:
            self._headers |= {
                "X-Frame-Options": "DENY",
                "Cross-Origin-Resource-Policy": "same-origin",
            }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)
