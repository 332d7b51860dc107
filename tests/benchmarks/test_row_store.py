"""Finished runs in a file: what is whole counts, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.report import commit
from benchmarks.row_store import RowStore


@dataclass(frozen=True)
class Run:
    name: str

    def label(self) -> str:
        return self.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "some.jsonl"


def test_what_another_process_writes_is_seen(path: Path) -> None:
    mine, others = RowStore(path), RowStore(path)
    mine.write(Run("(IA)³"), {"test": 0.5, "seconds": 2.0})
    assert mine.has(Run("(IA)³")) and others.has(Run("(IA)³"))
    others.write(Run("full"), {"test": 0.75, "seconds": 3.0})
    assert mine.read(Run("full")) == {"test": 0.75, "seconds": 3.0, "commit": commit()}
    assert mine.seconds() == 5.0
    assert not mine.has(Run("none"))


def test_the_later_of_two_rows_counts(path: Path) -> None:
    store = RowStore(path)
    for test in (0.5, 0.75):
        store.write(Run("full"), {"test": test})
    assert store.read(Run("full"))["test"] == 0.75


def test_a_row_that_was_cut_off_is_not_finished(path: Path) -> None:
    store = RowStore(path)
    store.write(Run("full"), {"test": 0.5})
    store.write(Run("none"), {"test": 0.25})
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    again = RowStore(path)
    assert again.has(Run("full")) and not again.has(Run("none"))
    again.write(Run("none"), {"test": 0.75})
    assert again.read(Run("none"))["test"] == 0.75 and again.has(Run("full"))
