"""What is posted, read whole and handed on."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


def is_posted(scope: Scope) -> bool:
    """Whether a request brings a body that is no form, as everything but an upload does."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return not Headers(scope=scope).get("content-type", "").lower().startswith(_FORMS)


async def posted(scope: Scope, receive: Receive) -> bytes:
    """The whole body of a request, so it belongs behind `BodyBounds`.

    Raises:
        ClientDisconnect: it ends before it is whole.
    """
    return await Request(scope, receive).body()


def again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more; then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
