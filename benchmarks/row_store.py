"""Rows of finished runs on disk, so that an interrupted benchmark resumes."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.report import Row
from svfit_diffusion.files.atomic import write_atomically


class Labelled(Protocol):
    """What names a run."""

    @property
    def stem(self) -> str:
        """Of its files."""

    def label(self) -> str:
        """For people."""


CellT = TypeVar("CellT", bound=Labelled)
SetupT = TypeVar("SetupT")


class RowStore:
    """The rows of runs that are finished, a file each.

    Args:
        folder: where they are; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Labelled) -> bool:
        """Whether the run is finished."""
        return self.path(cell).exists()

    def read(self, cell: Labelled) -> Row:
        """Its figures."""
        row: Row = json.loads(self.path(cell).read_text(encoding="utf-8"))
        return row

    def write(self, cell: Labelled, row: Row) -> None:
        """Keep a finished run."""
        text = json.dumps(row, indent=1)
        write_atomically(self.path(cell), functools.partial(Path.write_text, data=text))

    def seconds(self) -> float:
        """What all runs took together, one after the other."""
        paths = self._folder.glob("*.json")
        return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in paths)

    def path(self, cell: Labelled) -> Path:
        """The file of its figures."""
        return self._folder / f"{cell.stem}.json"


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
