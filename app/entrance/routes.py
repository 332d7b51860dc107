"""Which of Gradio's routes are answered at all, and which of them without a session."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusal import refuse

_API = "/gradio_api"

CLOSED = (
    "/dev",  # reloads pages while they are written
    "/vibe-edit",
    "/undo-vibe-edit",
    "/vibe-code",
    "/vibe-starter-queries",
    "/process_recording",
    "/custom_component",
    "/component_server",
    "/stream",  # of sound and video
    "/deep_link",  # writes a file for whoever asks
    "/runs",  # history in a bucket of the hub
    "/run-history",
    "/token",  # tells scripts what the cookie hides from them
    "/proxy=",
    "/file=http:",  # fetches any address for whoever asks
    "/file=https:",
    "/file/http:",
    "/file/https:",
)
"""Routes of Gradio, below its prefix, that this app has no use for; nobody is answered."""

_CLOSED_PAGES = ("/monitoring", "/pwa_icon")

OPEN = frozenset(
    {
        "/",  # the form to log in; the page itself for those who are
        "/login",
        "/logout",
        "/theme.css",
        f"{_API}/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        f"{_API}/login_check",  # says whether there is a session
        f"{_API}/user",  # says whose it is, to its owner
        f"{_API}/startup-events",  # does what it does once, for the app itself
    }
)
"""Routes that are answered without a session: the form to log in, and what it is made of."""

OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/")
"""Gradio's own scripts and pictures, the same for everyone."""


class RouteGate:
    """ASGI middleware that closes what is not used, and the rest to those without a session.

    Args:
        app: Gradio's app, within its other middleware.
        has_password: whether there are sessions.
    """

    def __init__(self, app: ASGIApp, has_password: bool) -> None:
        self._app = app
        self._has_password = has_password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse(scope, receive, send, 404, "There are no WebSockets here.")
        elif scope["type"] == "http" and is_closed(scope["path"]):
            await refuse(scope, receive, send, 404, "There is nothing here.")
        elif self._has_password and scope["type"] == "http" and not self._may_enter(scope):
            await refuse(scope, receive, send, 401, "Log in first.")
        else:
            await self._app(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        return is_open(scope["path"]) or has_session(scope)


def is_closed(path: str) -> bool:
    """Whether a path is of those that nobody is answered at."""
    below = path.removeprefix(_API) if path.startswith(_API) else None
    if below is not None:
        return any(
            below.startswith(closed) if closed[-1] in "=:" else _is_below(below, closed)
            for closed in CLOSED
        )
    return any(_is_below(path, closed) for closed in _CLOSED_PAGES)


def is_open(path: str) -> bool:
    """Whether a path is answered without a session."""
    return (path.rstrip("/") or "/") in OPEN or path.startswith(OPEN_FOLDERS)


def has_session(scope: Scope) -> bool:
    """Whether a request comes from someone who has logged in, as Gradio keeps it."""
    gradio, cookies = scope["app"], HTTPConnection(scope).cookies
    names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
    return any(cookies.get(name) in gradio.tokens for name in names)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
