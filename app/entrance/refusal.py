"""How requests are refused: one plain sentence, as programs, pages and sockets understand it."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

_POLICY_VIOLATION = 1008  # of WebSockets


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
    """Answer a request or a WebSocket with a refusal.

    Args:
        status: of HTTP.
        sentence: why; Gradio's page shows it.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": sentence})
        return
    response: Response
    if "json" in Headers(scope=scope).get("content-type", ""):
        response = JSONResponse({"detail": sentence}, status)
    else:
        response = PlainTextResponse(sentence, status)
    await response(scope, receive, send)
