"""What `docs/peft.md` says holds is what the tests hold."""

from __future__ import annotations

import re
from pathlib import Path

from peft_behaviours import BEHAVIOURS

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "peft.md"


def rows() -> list[tuple[set[str], str]]:
    """The names in each row of the page's table, and what it says of them."""
    cells = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if "|" in line]
    return [(set(re.findall(r"`(test_\w+)`", names)), holds.strip()) for names, holds in cells]


def held() -> set[str]:
    """The behaviours, and the tests of other files."""
    texts = [file.read_text() for file in HERE.glob("test_*.py")]
    return {*BEHAVIOURS, *(name for text in texts for name in re.findall(r"def (test_\w+)", text))}


def test_what_holds_is_tested() -> None:
    holding = {name for names, holds in rows() if holds.startswith("yes") for name in names}
    assert len(holding) > 40 and holding <= held()
    assert holding >= set(BEHAVIOURS)


def test_what_does_not_hold_is_not() -> None:
    missing = {name for names, holds in rows() if holds.startswith("no") for name in names}
    assert missing and not missing & held()
