"""JSON that others wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MAX_CHARACTERS = 2**20
"""Some hundred times what any of ours has."""
_MAX_DEPTH = 32
_MAX_DIGITS = 64


def parse_json(text: str) -> Any:
    """The value of a JSON text that may be anything.

    What comes back can be written, printed and walked through: bounded in length, depth and digits,
    and its strings are whole characters.

    Raises:
        ValueError: it is no such text.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters are more than {MAX_CHARACTERS:,}")
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level: Iterable[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, str):
        item.encode()  # JSON can spell halves of characters, which nothing can print
    return item if isinstance(item, list) else ()
