"""Pictures of a task: accuracy against trained values, and against rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.report import Row
from benchmarks.tasks.task_methods import REFERENCE

_PROBE = "linear probe"


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Both panels into a PNG file.

    Args:
        rows: of the table.
        title: above.
        path: of the file.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True)
    _draw_values(left, [row for row in rows if row["values"]])
    _draw_ranks(right, sorted(_of(rows, "SVFit"), key=lambda row: row["values"]))
    for panel in (left, right):
        for name, style in ((_PROBE, ":"), (REFERENCE, "--")):
            mean = next(row["test"]["mean"] for row in rows if row["method"] == name)
            panel.axhline(100 * mean, color="gray", ls=style, lw=1, label=name)
        panel.grid(alpha=0.3)
    left.set(xscale="log", xlabel="trained values beside the head", ylabel="accuracy, %")
    right.set_xlabel("singular values per weight")
    right.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _of(rows: Sequence[Row], family: str) -> list[Row]:
    return [row for row in rows if row["family"] == family]


def _draw_values(panel: Any, rows: Sequence[Row]) -> None:
    """A family's methods joined, each named where the legend does not name it."""
    for family in dict.fromkeys(row["family"] for row in rows):
        own = sorted(_of(rows, family), key=lambda row: row["values"])
        _with_errors(panel, [row["values"] for row in own], own, family)
        for row in own if len(own) > 1 else ():
            label = row["method"].removeprefix(f"{family}, ")
            at = (row["values"], 100 * row["test"]["mean"])
            panel.annotate(label, at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    panel.legend(fontsize=8, loc="lower right")  # where the least stands


def _draw_ranks(panel: Any, rows: Sequence[Row]) -> None:
    """SVFit's ranks and energies, evenly apart."""
    labels = [row["method"].removeprefix("SVFit, ") for row in rows]
    labels = ["full rank" if label == "SVFit" else label for label in labels]
    _with_errors(panel, range(len(rows)), rows, "SVFit")
    panel.set_xticks(range(len(rows)), labels)


def _with_errors(panel: Any, where: Sequence[int], rows: Sequence[Row], label: str) -> None:
    means = [100 * row["test"]["mean"] for row in rows]
    errors = [100 * row["test"]["stderr"] for row in rows]
    panel.errorbar(where, means, errors, fmt="o-", capsize=3, label=label)
