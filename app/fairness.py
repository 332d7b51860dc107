"""What of a thing that is there for all is each one's, and whose makes room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from .visitors import BEHIND_ONE_ADDRESS, Visitor

_K = TypeVar("_K")


def of_address(own: int, most: int) -> int:
    """How much the visitors of one address may have together: as much as a household's, and what
    leaves some to others.

    Args:
        own: how much one visitor may have.
        most: how much there is for all.
    """
    return max(own, min(own * BEHIND_ONE_ADDRESS, most - own))


def superfluous(whose: Mapping[_K, Visitor | None]) -> _K:
    """What has to go where there is too much: the first of whoever has most.

    That is the visitor with most things at the address with most; before that, what is nobody's.

    Args:
        whose: of two things at least, in the order in which they may go. The last is the one that
            all is about, and stays.
    """
    *others, _ = whose
    visitors = [visitor for visitor in whose.values() if visitor]
    ids = Counter(visitor.id for visitor in visitors)
    addresses = Counter(visitor.address for visitor in visitors)

    def excess(thing: _K) -> tuple[bool, int, int]:
        visitor = whose[thing]
        if visitor is None:
            return True, 0, 0
        return False, addresses[visitor.address], ids[visitor.id]

    return max(others, key=excess)
