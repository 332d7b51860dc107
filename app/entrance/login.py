"""Passwords that cannot be guessed: compared in constant time, and the slower the more fail."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..visitors import visitor_of
from .refusal import refuse

_FREE = 3  # mistakes of people
_LONGEST = 60.0  # seconds between two attempts from one address
_LONGEST_FOR_ALL = 2.0  # so that those who know the password are not kept out
_FAILURES_PER_SECOND = 50  # of all addresses within the span, that make everyone wait a second
_SPAN = 600.0
_AT_ONCE = 3
_ADDRESSES = 10_000


def checker(username: str, password: str) -> Callable[[str, str], bool]:
    """What tells whether a name and a password are these, in a time that tells nothing."""
    known = [_digest(username), _digest(password)]

    def is_right(name: str, word: str) -> bool:
        given = [_digest(name), _digest(word)]
        same = [secrets.compare_digest(a, b) for a, b in zip(given, known, strict=True)]
        return all(same)

    return is_right


@dataclass
class _Attempts:
    """What came from one address."""

    failures: int = 0
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class LoginPatience:
    """ASGI middleware that lets attempts to log in wait, one after the other from each address.

    The wait grows with the failures from an address, and a little with those from all; whoever
    knows the password waits, and gets in.

    Args:
        app: what answers them.
        sleep: waits for so many seconds.
        clock: what time it is, in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._sleep = sleep
        self._clock = clock
        self._attempts: OrderedDict[str, _Attempts] = OrderedDict()
        self._failures: deque[float] = deque(maxlen=_ADDRESSES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_attempt = scope["type"] == "http" and scope["path"].rstrip("/") == "/login"
        if not is_attempt or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        attempts = self._of(_network(visitor_of(scope).address))
        if attempts.waiting >= _AT_ONCE:
            await refuse(scope, receive, send, 429, "Wait for your last attempts to be answered.")
            return
        attempts.waiting += 1
        try:
            async with attempts.turn:
                await self._sleep(self._delay(attempts.failures))
                await self._attempt(attempts, scope, receive, send)
        finally:
            attempts.waiting -= 1

    async def _attempt(
        self, attempts: _Attempts, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    attempts.failures = 0
                else:
                    attempts.failures += 1
                    self._failures.append(self._clock())
            await send(message)

        await self._app(scope, receive, answer)

    def _delay(self, failures: int) -> float:
        """Seconds to wait after so many failures from one address."""
        while self._failures and self._failures[0] < self._clock() - _SPAN:
            self._failures.popleft()
        own = min(2.0 ** min(failures - _FREE, 10), _LONGEST) if failures >= _FREE else 0.0
        return max(own, min(len(self._failures) / _FAILURES_PER_SECOND, _LONGEST_FOR_ALL))

    def _of(self, network: str) -> _Attempts:
        attempts = self._attempts.setdefault(network, _Attempts())
        self._attempts.move_to_end(network)
        while len(self._attempts) > _ADDRESSES:
            self._attempts.popitem(last=False)
        return attempts


def _network(address: str) -> str:
    """What one household has of addresses: of IPv6 the first half."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if known.version == 4:
        return address
    return str(ipaddress.ip_network((int(known), 64), strict=False))


def _digest(text: str) -> bytes:
    """As long for every text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
