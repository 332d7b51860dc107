"""How much a request may bring: no more of it is read than is allowed."""

from __future__ import annotations

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..settings import Limits
from ..visitors import visitor_of
from .refusal import refuse
from .uploads import Room, Uploads

_JSON_BYTES = 2**20  # fifty times what a page of this app sends
_FORM_BYTES = 2**16  # names of files and what is around them
_NOT_AN_UPLOAD = Room(_JSON_BYTES, 0, f"A request has at most {_JSON_BYTES // 1024} KB.", "")


class BodyBounds:
    """ASGI middleware that cuts requests off where they become too large.

    Sizes are counted as they come, whatever a request says of itself.

    Args:
        app: what takes the requests.
        limits: of uploads.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._uploads = Uploads(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
        elif scope["path"].rstrip("/").endswith("/upload"):
            visitor = visitor_of(scope)
            body = _Body(scope, receive, self._uploads.room(visitor), _boundary(scope))
            await self._bounded(scope, body, send)
            self._uploads.note(visitor, body.bytes, body.files)
        else:
            await self._bounded(scope, _Body(scope, receive, _NOT_AN_UPLOAD, None), send)

    async def _bounded(self, scope: Scope, body: _Body, send: Send) -> None:
        has_begun = False

        async def answer(message: Message) -> None:
            # What is made of half a request is no answer to it.
            nonlocal has_begun
            if has_begun or body.problem is None:
                has_begun = True
                await send(message)

        if body.problem is None:
            try:
                await self._app(scope, body.receive, answer)
            except Exception:
                if body.problem is None:
                    raise
        if body.problem is not None and not has_begun:
            await refuse(scope, body.receive, send, 413, body.problem)


class _Body:
    """A request's body that ends where it becomes too large.

    Attributes:
        bytes: how many have come.
        problem: why it is cut off; None while all is well.
    """

    def __init__(self, scope: Scope, receive: Receive, room: Room, boundary: bytes | None) -> None:
        self._receive = receive
        self._room = room
        self._most = room.bytes + (_FORM_BYTES if boundary else 0)
        self._boundary = boundary
        self._tail = b""
        self._boundaries = 0
        self.bytes = 0
        said = int(Headers(scope=scope).get("content-length") or 0)
        self.problem = room.too_large if said > self._most else None

    @property
    def files(self) -> int:
        """How many parts of a form have come."""
        return max(0, self._boundaries - 1)  # the last ends the form

    async def receive(self) -> Message:
        """The next message of the request; what is beyond the bounds is taken for its end."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        chunk = message.get("body", b"")
        self.bytes += len(chunk)
        if self._boundary:
            self._count_boundaries(chunk, self._boundary)
        if self.bytes > self._most:
            self.problem = self._room.too_large
        elif self.files > self._room.files:
            self.problem = self._room.too_many
        return message if self.problem is None else {"type": "http.disconnect"}

    def _count_boundaries(self, chunk: bytes, boundary: bytes) -> None:
        """Count what begins a part; it may lie across two chunks, and is seen once."""
        seen = self._tail + chunk
        self._boundaries += seen.count(boundary)
        unseen = seen.rpartition(boundary)[2]
        self._tail = unseen[-(len(boundary) - 1) :]


def _boundary(scope: Scope) -> bytes | None:
    _, options = parse_options_header(Headers(scope=scope).get("content-type", ""))
    boundary = options.get(b"boundary")
    return b"--" + boundary if boundary else None
