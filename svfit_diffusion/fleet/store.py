"""Where a fleet keeps what comes out: a folder or a bucket, through fsspec.

    rex/…                      what a training alone leaves, checkpoints included
    .fleet/finished/rex.json   written last: rex is done, and what it took
    fleet.jsonl                the same of all, a line each

A file appears there whole or not at all, as objects in buckets do by themselves.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from svfit_diffusion.errors import ConfigError, StorageError, SVFitError, clipped
from svfit_diffusion.files.atomic import make_folder, write_atomically
from svfit_diffusion.files.json_text import parse_json

COSTS_NAME = "fleet.jsonl"
_FINISHED = ".fleet/finished"
_READERS = 16  # small files read at a time, as each takes a bucket's while


def is_address(place: str) -> bool:
    """Whether a place is an address of fsspec's, such as `s3://bucket/folder`, not a folder."""
    return "://" in place


class Store:
    """A folder of files, here or in a bucket.

    Args:
        address: of it; a folder need not exist.

    Raises:
        ConfigError: there is no such kind of place, or what it needs is not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{address!r} cannot be used: {error}") from None
        self._is_local = isinstance(self._files, LocalFileSystem)

    @property
    def address(self) -> str:
        """Names it wherever the process runs."""
        return str(self._files.unstrip_protocol(self._root))

    def __str__(self) -> str:
        """Names it to people."""
        return str(self._root) if self._is_local else self.address

    # Subjects that are done

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Note that a subject is done, once all else of it is there.

        Args:
            name: of the subject.
            record: what it took, as JSON has it.

        Raises:
            StorageError: it cannot be written.
        """
        self.write(f"{_FINISHED}/{name}.json", json.dumps(record, indent=2) + "\n")

    def finished(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records of those of some subjects that are done, by name.

        Raises:
            StorageError: the place cannot be reached, or one is no record.
        """
        self._files.invalidate_cache()  # others write there, too
        there = set(self.files(_FINISHED))
        paths = {n: self._full(f"{_FINISHED}/{n}.json") for n in names if f"{n}.json" in there}
        # Not `cat` of all, which takes some names for patterns.
        with self._reaching(_FINISHED), ThreadPoolExecutor(_READERS) as readers:
            texts = list(readers.map(self._files.cat_file, paths.values()))
        return {name: _record(name, text) for name, text in zip(paths, texts, strict=True)}

    # Files

    def files(self, folder: str) -> list[str]:
        """The files in a folder and those in it, as paths within the folder; none if there is no
        such folder, and without those whose names begin with a dot.

        Raises:
            StorageError: the place cannot be reached.
        """
        full = self._full(folder)
        with self._reaching(folder):
            found = [path.removeprefix(full).lstrip("/") for path in self._files.find(full)]
        return sorted(p for p in found if not any(part.startswith(".") for part in p.split("/")))

    def get(self, path: str, target: Path) -> None:
        """Copy a file from there; `StorageError` if it cannot be."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching(path):
            self._files.get_file(self._full(path), str(target))

    def put(self, source: Path, path: str) -> None:
        """Copy a file to there, in place of one of that name; `StorageError` if it cannot be."""
        full = self._full(path)
        if self._is_local:
            make_folder(Path(full).parent)
            write_atomically(Path(full), lambda target: shutil.copyfile(source, target))
            return
        with self._reaching(path):
            self._files.put_file(str(source), full)

    def write(self, path: str, text: str) -> None:
        """Write a file there, in place of one of that name; `StorageError` if it cannot be."""
        full = self._full(path)
        if self._is_local:
            make_folder(Path(full).parent)
            write_atomically(Path(full), lambda target: target.write_text(text, encoding="utf-8"))
            return
        with self._reaching(path):
            self._files.pipe_file(full, text.encode())

    def remove(self, path: str) -> None:
        """Remove a file there, if it is there; `StorageError` if it cannot be removed."""
        with self._reaching(path), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._full(path))
            if self._is_local:  # buckets have no empty folders
                with contextlib.suppress(OSError):
                    Path(self._full(path)).parent.rmdir()

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")

    @contextlib.contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Say in one sentence what could not be reached; each kind of bucket has its own errors."""
        try:
            yield
        except SVFitError:
            raise
        except Exception as error:
            said = clipped(error) or type(error).__name__
            raise StorageError(f"cannot reach {self}/{path}: {said}") from error


def _record(name: str, text: bytes) -> dict[str, Any]:
    try:
        record = parse_json(text.decode())
    except ValueError as error:
        raise StorageError(f"{_FINISHED}/{name}.json is no record of a fleet: {error}") from None
    if not isinstance(record, dict) or not all(fits(record.get(key)) for key, fits in _RECORD):
        raise StorageError(
            f"{_FINISHED}/{name}.json is no record of a fleet; remove it, and {name} is trained "
            f"again"
        )
    return record


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


_RECORD: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("steps", _is_amount),
    ("worker_seconds", _is_amount),
    ("settings", lambda value: isinstance(value, dict)),
)
"""What every record says, and what it must be."""
