"""Who may ask a server, and how much a request may bring."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.serving.api_errors import error_response

_JSON_BYTES = 2**20
_FORM_BYTES = 2**16  # of an upload's form, beside its file
_MOST_DIGITS = 18  # of a length that is believed
_KEY_CHARACTERS = 16
_CLIENT = "svfit.client"
"""Where a request's scope names who asks."""


def check_key(key: str) -> None:
    """Raise `ConfigError` if a key could be guessed, or cannot be sent.

    Requests with wrong keys are answered at once, and as many may come as a network carries.
    """
    can_be_sent = key.isascii() and key.isprintable() and key == key.strip()
    if len(key) < _KEY_CHARACTERS or not can_be_sent:
        raise ConfigError(
            f"got a key of {len(key)} characters, expected at least {_KEY_CHARACTERS} printable "
            f"ones of ASCII that cannot be guessed, such as `openssl rand -hex 16` prints"
        )


class Gate:
    """ASGI middleware that lets in who may ask, and reads nothing of what others send.

    Args:
        app: what takes the requests of those.
        keys: that are taken; without any, everyone may ask.
        open_path: that everyone may ask for.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], open_path: str) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]
        self._open_path = open_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == self._open_path:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = self._known(headers) if self._digests else self._anyone(scope, headers)
        if isinstance(known, JSONResponse):
            await known(scope, receive, send)
        else:
            scope[_CLIENT] = known
            await self._app(scope, receive, send)

    def _known(self, headers: Headers) -> str | JSONResponse:
        """Who asks, by key; or how that is refused."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        own = _digest(key)
        # All are compared, each in constant time, so that time tells nothing about them.
        known = [hmac.compare_digest(own, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            why = "give a key of this server as: Authorization: Bearer KEY"
            return error_response(401, why, code="invalid_api_key")
        return own.hex()

    def _anyone(self, scope: Scope, headers: Headers) -> str | JSONResponse:
        """Who asks, by address; pages of whatever site a browser is on are refused."""
        address = scope["client"][0] if scope.get("client") else ""
        # Browsers say the site with all that changes anything. A site whose name points to this
        # machine (DNS rebinding) is found out by that name.
        foreign = _is_loopback(address) and not _is_loopback(_name(headers.get("host", "")))
        if "origin" in headers or foreign:
            why = "a server without keys (--api_key) answers no web pages and no other names"
            return error_response(403, why)
        return address


async def client_of(request: Request) -> str:
    """Who asks, as the gate has found; a dependency of routes."""
    return str(request.scope[_CLIENT])


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
        declared = Headers(scope=scope).get("content-length", "0")[:_MOST_DIGITS]
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


def _name(host: str) -> str:
    """A `Host` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
