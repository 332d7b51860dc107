"""What stands between the network and the app: ASGI middleware, each with one subject."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

from ..disk import MEGABYTE
from ..memory import keep_giving_back
from ..page_states import PageStates
from ..passing import bound_shown
from ..settings import AppSettings, Limits
from .bodies import BodyBounds
from .crowd import Crowd
from .framing import Framing
from .hosts import HostGate, KnownHosts
from .links import LinkGate
from .listening import Listening
from .login import LoginPatience
from .places import Places
from .recognition import Recognition
from .routes import RouteGate
from .sessions import Sessions


def guarded(
    app: ASGIApp, hosts: KnownHosts, settings: AppSettings, limits: Limits, states: PageStates
) -> ASGIApp:
    """An app behind all of it.

    Args:
        app: Gradio's, with its own middleware.
        hosts: names by which it may be called.
        settings: who may frame it, and whether there is a password.
        limits: what a visitor may send.
        states: of pages.
    """
    app = Listening(app)
    app = Sessions(app, states.belongs)
    app = LinkGate(app)
    app = Places(app, limits)
    app = BodyBounds(app, limits)
    app = LoginPatience(app)
    app = Crowd(app)
    app = RouteGate(app, has_password=settings.auth is not None)
    app = Recognition(app, settings.is_for_one_user, is_framed=bool(settings.framed_by))
    app = HostGate(app, hosts)
    return Framing(app, settings.framed_by)


def lifespan(
    hosts: KnownHosts, settings: AppSettings, limits: Limits
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A lifespan of Gradio's server that puts the entrance around all of it, and keeps what pages
    show on the way, and memory, within bounds.

    Middleware that Gradio is given goes below its own, which would answer foreign pages first.
    """

    @asynccontextmanager
    async def guard(server: Any) -> AsyncIterator[None]:
        server.state_holder = PageStates(server.get_blocks())
        server.middleware_stack = guarded(
            server.middleware_stack, hosts, settings, limits, server.state_holder
        )
        most = limits.max_all_shown_megabytes * MEGABYTE
        again_and_again = [
            asyncio.create_task(bound_shown(server.get_blocks(), most)),
            asyncio.create_task(keep_giving_back()),
        ]
        try:
            yield
        finally:
            for task in again_and_again:
                task.cancel()

    return guard
