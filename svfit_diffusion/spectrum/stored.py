"""The cache's folder as a whole: what lies in it, and what may go.

Ours are files by the name of a basis whose header does not say that they are something else, and
what interrupted writes have left. Links, and everything else, are nobody's business here.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svfit_diffusion.files.mapped import read_metadata
from svfit_diffusion.spectrum.basis_file import FORMAT, digest_in

PULLED = (".pull.", ".tmp")
"""How names of folders begin and end that are downloaded into."""

_FORMAT = re.compile(r"svfit-basis-(\d+)(-leading)?")
_LEFT_OVER = re.compile(r"\.[0-9a-f]{64}\.safetensors\.\w{8}\.tmp|\.pull\.\w{8}\.tmp")
_INTERRUPTED_AFTER = 60 * 60
"""Seconds without a change after which nobody is writing any more."""


@dataclass(frozen=True)
class StoredBasis:
    """A basis file in the cache, whatever state it is in.

    Attributes:
        path: the file.
        digest: of the weight that its name says.
        size: in bytes.
        used: when it was last written or read, in seconds since the epoch, to a day.
        format: as its header says; None where it has none that can be read.
    """

    path: Path
    digest: str
    size: int
    used: float
    format: str | None

    @property
    def is_old(self) -> bool:
        """Whether it is of an older format than this version writes."""
        number = _FORMAT.fullmatch(self.format or "")
        return number is not None and int(number[1]) < int(FORMAT.rpartition("-")[2])


def stored_bases(folder: Path) -> list[StoredBasis]:
    """The basis files in a folder, by name; none where there is no folder.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path, digest in ((path, digest_in(path.name)) for path in _entries(folder)):
        try:
            if digest is None or path.is_symlink() or not path.is_file():
                continue
            status, says = path.stat(), _format_of(path)
        except FileNotFoundError:  # removed meanwhile
            continue
        if says is None or _FORMAT.fullmatch(says):
            found.append(StoredBasis(path, digest, status.st_size, status.st_mtime, says))
    return found


def leftovers(folder: Path) -> list[Path]:
    """What interrupted writes and downloads have left in a folder: files, and folders of ours.

    Raises:
        OSError: the folder cannot be read.
    """
    named = [path for path in _entries(folder) if _LEFT_OVER.fullmatch(path.name)]
    now = time.time()
    return [
        path
        for path in named
        if not path.is_symlink() and now - _last_change(path) > _INTERRUPTED_AFTER
    ]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, as far as they are still there."""
    return sum(status.st_size for status in _statuses(path))


def remove(path: Path) -> None:
    """Remove a stored basis or a leftover, if it is still there.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _format_of(path: Path) -> str | None:
    """The format that a safetensors file says it has, `""` if none; None if it is no such file."""
    try:
        return read_metadata(path).get("format", "")
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None


def _last_change(path: Path) -> float:
    return max((status.st_mtime for status in _statuses(path)), default=time.time())


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all in it; without what is gone meanwhile."""
    for one in (path, *path.rglob("*")):
        try:
            yield one.lstat()
        except FileNotFoundError:
            continue
