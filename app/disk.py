"""How much may lie on disk: what of files must go, so that the rest has room."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 2**20
DAY = 24 * 60 * 60

_LEAST = 2**14
"""What a file counts for at least, in bytes: small ones cost a disk their places, and time to find.
"""


@dataclass(frozen=True)
class Stored:
    """A file as it lay there.

    Attributes:
        path: where.
        bytes: what it counts for.
        time: when it was written or last handed out, in seconds since 1970.
    """

    path: Path
    bytes: int
    time: float


def stored(paths: Iterable[Path]) -> list[Stored]:
    """The files among paths, the oldest first; without those that are gone meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                found.append(Stored(path, max(stat.st_size, _LEAST), stat.st_mtime))
    return sorted(found, key=lambda file: file.time)


def oldest(files: Iterable[Stored], excess: int) -> list[Stored]:
    """As many files as have so many bytes together, in their order; all, if those are fewer."""
    chosen = []
    for file in files:
        if excess <= 0:
            break
        chosen.append(file)
        excess -= file.bytes
    return chosen


def remove(files: Iterable[Stored]) -> None:
    """Remove files that may be gone already."""
    for file in files:
        file.path.unlink(missing_ok=True)


def trim(files: list[Stored], most: int) -> None:
    """Remove the first of files until the rest have at most so many bytes."""
    remove(oldest(files, total(files) - most))


def total(files: Iterable[Stored]) -> int:
    """Bytes of all of them."""
    return sum(file.bytes for file in files)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove the files of a folder that nobody has touched for so long, and the folders that they
    leave empty; others may be about to be filled.
    """
    old = [file for file in stored(folder.rglob("*")) if time.time() - file.time > seconds]
    remove(old)
    for path in sorted({above for file in old for above in file.path.parents}, reverse=True):
        if folder in path.parents:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
