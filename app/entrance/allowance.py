"""How much of something each may have within a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable


class Allowance:
    """Gives out up to an amount to each within a sliding span of time.

    Args:
        amount: how much each may have.
        seconds: the span.
        clock: what time it is, in seconds.
    """

    def __init__(
        self, amount: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._amount = amount
        self._seconds = seconds
        self._clock = clock
        self._taken: dict[Hashable, deque[tuple[float, int]]] = {}

    def left(self, who: Hashable) -> int:
        """How much someone may still have."""
        self._forget()
        return self._amount - sum(amount for _, amount in self._taken.get(who, ()))

    def take(self, who: Hashable, amount: int) -> None:
        """Note that someone has had so much."""
        self._taken.setdefault(who, deque()).append((self._clock(), amount))

    def _forget(self) -> None:
        """Drop what was taken long ago, so that no more is remembered than counts."""
        horizon = self._clock() - self._seconds
        for who, taken in list(self._taken.items()):
            while taken and taken[0][0] < horizon:
                taken.popleft()
            if not taken:
                del self._taken[who]
