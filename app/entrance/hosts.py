"""By which names the app may be called: what keeps DNS rebinding and foreign pages out.

A page of another site can let its own name point to this machine (DNS rebinding), or send requests
here by the address it knows. Browsers say so: `Host` has the name that was asked for, and `Origin`
the site of the page that asks. Starlette's TrustedHostMiddleware looks at `Host` alone, and knows
neither addresses nor sockets.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusal import refuse

EVERY_ADDRESS = ("0.0.0.0", "::")
"""Listening on these is listening on every address of the machine."""

_PORTS = {"http": 80, "https": 443}


class KnownHosts:
    """The names by which the app may be called.

    A name of this machine, an address listened on, and what is given. Where every address is
    listened on, any address will do: DNS rebinding needs a name.

    Args:
        listening: name or address listened on.
        given: more names, such as a proxy's; `*.example.org` for all below one, `*` for all.
    """

    def __init__(self, listening: str, given: Iterable[str] = ()) -> None:
        self._takes_addresses = listening in EVERY_ADDRESS
        own = {"localhost", name_of(listening)}
        if self._takes_addresses:
            here = socket.gethostname().lower()
            own |= {here, f"{here.partition('.')[0]}.local"}
        self._own = own
        self._given = {name_of(name) for name in given}

    def add(self, address: str) -> None:
        """Let the app be called by another name, as its public address has it."""
        self._given.add(name_of(address))

    def knows(self, host: str) -> bool:
        """Whether a `Host`, with or without a port, is one of them."""
        name = name_of(host)
        address = _address(name)
        if address is not None and (address.is_loopback or self._takes_addresses):
            return True
        return name in self._own or self._is_given(name)

    def trusts(self, origin: str, host: str) -> bool:
        """Whether the page of an `Origin` may ask: it came from here, or from a name given."""
        parts = urlsplit(origin)
        if parts.scheme not in _PORTS:
            return False  # "null" too: a page of no site
        default = _PORTS[parts.scheme]
        same = _name_and_port(parts.netloc, default) == _name_and_port(host, default)
        return same or self._is_given(name_of(parts.netloc))

    def _is_given(self, name: str) -> bool:
        if not name:
            return False
        return any(
            pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self._given
        )


class HostGate:
    """ASGI middleware that refuses requests and sockets by foreign names and from foreign pages.

    Args:
        app: what is asked if all is well.
        hosts: the names that are known.
    """

    def __init__(self, app: ASGIApp, hosts: KnownHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = None
        if scope["type"] in ("http", "websocket"):
            problem = self._problem(Headers(scope=scope))
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send, 403, problem)

    def _problem(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return "A request names one Host, and this one does not."
        # What a proxy was asked for; Gradio builds addresses of it.
        forwarded = [name.strip() for name in headers.get("x-forwarded-host", "").split(",")]
        for host in filter(None, (*hosts, *forwarded)):
            if not self._hosts.knows(host):
                return _unknown(host)
        for origin in headers.getlist("origin"):
            if not self._hosts.trusts(origin, hosts[0]):
                return f"Pages of {origin[:100]} may not use this app."
        return None


def name_of(address: str) -> str:
    """The host name or address in a URL, `Host` or `Origin`, lower case; `""` if there is none."""
    try:
        netloc = urlsplit(address if "//" in address else f"//{_in_brackets(address)}")
        return "" if "@" in netloc.netloc else (netloc.hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _in_brackets(address: str) -> str:
    """An IPv6 address as URLs have it."""
    return f"[{address}]" if address.count(":") > 1 and "[" not in address else address


def _name_and_port(netloc: str, default: int) -> tuple[str, int] | None:
    try:
        return name_of(netloc), urlsplit(f"//{netloc}").port or default
    except ValueError:
        return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _unknown(host: str) -> str:
    name = name_of(host)[:100]
    return (
        f"This app is not known as “{name}”; whoever runs it can start it with "
        f"--allowed_host {name or 'NAME'}."
    )
