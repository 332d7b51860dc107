"""Rows of the speed benchmark: a figure, what it is compared with, and whether that suffices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report import Row

COLUMNS = ("what", "method", "value", "unit", "ratio_to", "ratio", "target", "holds")


@dataclass(frozen=True)
class Target:
    """What a row should be: at most `limit`.

    Attributes:
        group: that makes the row.
        device: that it is made on.
        what: of the row.
        method: of the row.
        limit: of the row's ratio where it has one, of its value otherwise.
        ratio_to: of the row.
    """

    group: str
    device: str
    what: str
    method: str
    limit: float
    ratio_to: str | None = None

    def is_for(self, row: Row) -> bool:
        """Whether `row` is the one meant."""
        return (row["what"], row["method"], row["ratio_to"]) == (
            self.what,
            self.method,
            self.ratio_to,
        )


def make_row(
    what: str,
    method: str,
    value: float | None,
    unit: str,
    ratio_to: str | None = None,
    ratio: float | None = None,
    **details: object,
) -> Row:
    """A row not yet judged."""
    return {
        "what": what,
        "method": method,
        "value": value,
        "unit": unit,
        "ratio_to": ratio_to,
        "ratio": ratio,
        "target": None,
        "holds": None,
        **details,
    }


def timing_rows(
    what: str, seconds: Mapping[str, Sequence[float]], ratio_to: str, **details: object
) -> list[Row]:
    """A row per method: its median, and the median of its ratios to another in the same round.

    Args:
        what: was timed.
        seconds: of each method, a value per round.
        ratio_to: the method to compare with.
        details: further entries of every row.
    """
    rows = []
    for method, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[ratio_to], strict=True)]
        rows.append(
            make_row(
                what,
                method,
                median(values),
                "s",
                ratio_to,
                median(ratios),
                min=min(values),
                max=max(values),
                ratio_min=min(ratios),
                ratio_max=max(ratios),
                rounds=len(values),
                **details,
            )
        )
    return rows


def value_rows(
    what: str, values: Mapping[str, float], unit: str, ratio_to: str, **details: object
) -> list[Row]:
    """A row per method, with its ratio to one of them."""
    return [
        make_row(what, method, value, unit, ratio_to, value / values[ratio_to], **details)
        for method, value in values.items()
    ]


def judged(rows: Sequence[Row], targets: Sequence[Target], reason: str) -> list[Row]:
    """The rows with their targets, and a row without a value for each target that none meets.

    Args:
        rows: as made by a group.
        targets: of that group.
        reason: why rows may be missing.
    """
    found = []
    for row in rows:
        target = next((target for target in targets if target.is_for(row)), None)
        if target is None:
            found.append(row)
            continue
        measured = row["value"] if target.ratio_to is None else row["ratio"]
        found.append(row | {"target": target.limit, "holds": measured <= target.limit})
    missing = [target for target in targets if not any(target.is_for(row) for row in rows)]
    return found + [unmeasured(target, reason) for target in missing]


def unmeasured(target: Target, reason: str) -> Row:
    """The row of a target that nothing was measured for."""
    row = make_row(target.what, target.method, None, "", target.ratio_to, reason=reason)
    return row | {"target": target.limit}
