"""Rows of finished runs in a file, so that an interrupted benchmark resumes, on any machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.report import RESULTS, Row, commit

RUNS = RESULTS / "runs"
"""Finished runs, which are committed: what took hours on one machine goes on on another."""


class Labelled(Protocol):
    """What names a run."""

    def label(self) -> str:
        """For people, and in the file."""


CellT = TypeVar("CellT", bound=Labelled)
SetupT = TypeVar("SetupT")


class RowStore:
    """The rows of runs that are finished, a line of JSON each; of two of one run the later counts.

    Several processes may write.

    Args:
        path: of the file; its folder is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        self._read = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Labelled) -> bool:
        """Whether the run is finished."""
        return cell.label() in self._known()

    def read(self, cell: Labelled) -> Row:
        """Its figures, and the `commit` that made them."""
        return self._known()[cell.label()]

    def write(self, cell: Labelled, row: Row) -> None:
        """Keep a finished run."""
        line = json.dumps({"run": cell.label(), "commit": commit(), **row}, ensure_ascii=False)
        cut_off = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut_off + line + "\n")  # at once: those of several do not mix

    def seconds(self) -> float:
        """What all runs took together, one after the other."""
        return sum(row["seconds"] for row in self._known().values())

    def _known(self) -> dict[str, Row]:
        """All rows by label, with those that other processes have written meanwhile."""
        if self._path.exists() and self._path.stat().st_size != self._read:
            content = self._path.read_bytes()
            self._read = len(content)
            self._rows = {row.pop("run"): row for row in _whole_rows(content.splitlines())}
        return self._rows


def _whole_rows(lines: Sequence[bytes]) -> Iterator[Row]:
    """The rows, but for one that a crash has cut off, which is not finished."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def run_missing(
    run: Callable[[SetupT, CellT], Any],
    setup: SetupT,
    store: RowStore,
    cells: Sequence[CellT],
    processes: int,
    describe: Callable[[Row], str],
) -> None:
    """Run the cells that are not in the store yet, on some processes of one thread each.

    Args:
        run: runs a cell of the setup and puts it into the store; it must be importable.
        setup: what the cells share.
        store: theirs.
        cells: those wanted.
        processes: how many at a time.
        describe: a finished cell's row in a few words, which are printed.
    """
    missing = [cell for cell in cells if not store.has(cell)]
    if not missing:
        return
    started = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        results = executor.map(run, itertools.repeat(setup), missing)
        for done, (cell, _) in enumerate(zip(missing, results, strict=True), 1):
            left = (time.perf_counter() - started) / done * (len(missing) - done)
            said = f"{cell.label()}: {describe(store.read(cell))}"
            print(f"{done}/{len(missing)} {said}; {left / 60:.0f} min left", flush=True)
