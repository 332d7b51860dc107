"""Recognising visitors: by a cookie that nobody can guess, or else by their address."""

from __future__ import annotations

import hashlib
import re
import secrets
from http.cookies import SimpleCookie

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..visitors import HOUSE, KEY, Listeners, Visitor

COOKIE = "svfit-visitor"
_TOKEN = re.compile(r"[\w-]{43}", re.ASCII)  # of 32 bytes
_YEAR = 365 * 86400


class Recognition:
    """ASGI middleware that says of each request whose it is, and gives newcomers a cookie.

    Args:
        app: what asks `visitor_of`.
        one_user: whether all that is here belongs to whoever comes.
        is_framed: whether pages of other sites show the app, where browsers want to be told that
            cookies are meant for it all the same.
    """

    def __init__(self, app: ASGIApp, one_user: bool, is_framed: bool) -> None:
        self._app = app
        self._listeners = Listeners()
        self._one_user = one_user
        self._is_framed = is_framed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = HTTPConnection(scope).cookies.get(COOKIE, "")
        address = scope["client"][0] if scope.get("client") else ""
        is_known = _TOKEN.fullmatch(token) is not None
        # What is kept of a cookie opens nothing.
        id = hashlib.sha256(token.encode()).hexdigest()[:32] if is_known else f"at {address}"
        owner = HOUSE if self._one_user else id
        scope[KEY] = Visitor(id, address, owner, self._listeners)

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] == "/":
                MutableHeaders(scope=message).append("set-cookie", self._cookie(scope["scheme"]))
            await send(message)

        await self._app(scope, receive, send if is_known else send_with_cookie)

    def _cookie(self, scheme: str) -> str:
        morsel = SimpleCookie({COOKIE: secrets.token_urlsafe(32)})[COOKIE]
        morsel["path"], morsel["max-age"], morsel["httponly"] = "/", _YEAR, True
        morsel["secure"] = scheme == "https"
        morsel["samesite"] = "None" if self._is_framed and scheme == "https" else "Lax"
        return morsel.OutputString()
