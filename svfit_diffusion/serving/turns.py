"""Whose turn it is among those who wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """Turns go round: whoever was served longest ago comes first, however much they wait for.

    Args:
        owner: whose a thing is.
    """

    def __init__(self, owner: Callable[[_T], str]) -> None:
        self._owner = owner
        self._served: dict[str, int] = {}
        self._turn = 0

    def in_order(self, waiting: Sequence[_T]) -> list[_T]:
        """Everyone's first, then everyone's second …; who was served longest ago first.

        Args:
            waiting: in the order of arrival.
        """
        before: Counter[str] = Counter()
        ranked = []
        for arrival, thing in enumerate(waiting):
            who = self._owner(thing)
            ranked.append((before[who], self._served.get(who, 0), arrival, thing))
            before[who] += 1
        return [thing for *_, thing in sorted(ranked, key=lambda entry: entry[:3])]

    def note(self, served: Iterable[_T], waiting: Iterable[_T]) -> None:
        """Remember who was served, as long as they wait for more."""
        self._turn += 1
        self._served.update(dict.fromkeys(map(self._owner, served), self._turn))
        present = set(map(self._owner, waiting))
        self._served = {who: turn for who, turn in self._served.items() if who in present}
