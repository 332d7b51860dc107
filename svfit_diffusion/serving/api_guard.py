"""Who may ask a server, and how much a request may bring."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_JSON_BYTES = 2**20
_FORM_BYTES = 2**16  # of an upload's form, beside its file


class Keys:
    """The keys that a server takes; without any, everyone may ask.

    Args:
        keys: as given to those who may.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    async def client(self, request: Request) -> str:
        """Who asks, by key, or by address where there are no keys; a dependency of routes.

        Raises:
            HTTPException: 401 without a key that is taken; 403 where everyone may ask, but for the
                pages of whatever site a browser is on.
        """
        if not self._digests:
            if "origin" in request.headers:  # browsers say it with all that changes anything
                raise HTTPException(403, "a server without keys (--api_key) answers no web pages")
            return request.client.host if request.client else ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        own = _digest(key)
        # All are compared, each in constant time, so that time tells nothing about them.
        known = [hmac.compare_digest(own, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise HTTPException(401, "give a key of this server as: Authorization: Bearer KEY")
        return own.hex()


class BodyBounds:
    """ASGI middleware that reads no more of a request than is allowed, whatever it says of itself.

    Args:
        app: what takes the requests.
        uploads: path that takes files.
        upload_bytes: most bytes of a file.
    """

    def __init__(self, app: ASGIApp, uploads: str, upload_bytes: int) -> None:
        self._app = app
        self._uploads = uploads
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/").endswith(self._uploads)
        most = self._upload_bytes + _FORM_BYTES if is_upload else _JSON_BYTES
        declared = Headers(scope=scope).get("content-length", "0")
        said = int(declared) if declared.isdecimal() else 0
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(said, received) > most:
                raise HTTPException(413, f"got a body larger than the {most} bytes allowed")
            return message

        await self._app(scope, bounded, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
