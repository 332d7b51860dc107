"""A folder here or in a bucket, through fsspec."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from svfit_diffusion.errors import ConfigError, StorageError, SVFitError, clipped
from svfit_diffusion.files.atomic import make_folder, write_atomically

_READERS = 16  # files read at a time, as each takes a bucket's while


def is_address(place: str) -> bool:
    """Whether a place is an address of fsspec's, such as `s3://bucket/folder`, not a folder."""
    return "://" in place


class Bucket:
    """A folder of files, here or in a bucket. A file appears there whole or not at all, as objects
    in buckets do by themselves; what other processes write is seen at once.

    Args:
        address: of it; a folder need not exist.

    Raises:
        ConfigError: there is no such kind of place, or what it needs is not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{address!r} cannot be used: {clipped(error)}") from None
        self._is_local = isinstance(self._files, LocalFileSystem)

    @property
    def address(self) -> str:
        """Names it wherever the process runs."""
        return str(self._files.unstrip_protocol(self._root))

    def __str__(self) -> str:
        """Names it to people."""
        return str(self._root) if self._is_local else self.address

    def make(self) -> None:
        """Make the folder, unless it is there; `StorageError` if it cannot be."""
        with self._reaching(""):
            self._files.makedirs(self._root, exist_ok=True)

    def files(self, folder: str = "", depth: int | None = None) -> dict[str, int]:
        """The sizes in bytes of the files in a folder and those in it, by path within the folder;
        none if there is no such folder, and without those whose names begin with a dot.

        Args:
            folder: which, within this one.
            depth: how many levels down to look; 1 is the folder's own files. All if not given.

        Raises:
            StorageError: the place cannot be reached.
        """
        full = self._full(folder)
        with self._reaching(folder):
            entries = self._files.find(full, maxdepth=depth, detail=True)
        sizes = {path.removeprefix(full).lstrip("/"): entries[path]["size"] for path in entries}
        return {path: sizes[path] for path in sorted(sizes) if not _is_hidden(path)}

    def exists(self, path: str) -> bool:
        """Whether a file is there; `StorageError` if the place cannot be reached."""
        with self._reaching(path):
            return bool(self._files.exists(self._full(path)))

    def version(self, path: str) -> str:
        """What tells a file from one of the same name before it; `StorageError` if it cannot be
        reached."""
        with self._reaching(path):
            return str(self._files.ukey(self._full(path)))

    def read(self, path: str) -> bytes:
        """What is in a file there; `StorageError` if it cannot be read."""
        with self._reaching(path):
            return bytes(self._files.cat_file(self._full(path)))

    def read_all(self, paths: Sequence[str]) -> list[bytes]:
        """What is in many small files there; `StorageError` if one cannot be read."""
        # Not fsspec's `cat` of all, which takes some names for patterns.
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self.read, paths))

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

    def write(self, path: str, data: bytes) -> None:
        """Write a file there, in place of one of that name; `StorageError` if it cannot be."""
        full = self._full(path)
        if self._is_local:
            make_folder(Path(full).parent)
            write_atomically(Path(full), partial(Path.write_bytes, data=data))
            return
        with self._reaching(path):
            self._files.pipe_file(full, data)

    def remove(self, path: str) -> None:
        """Remove a file there, if it is there, and its folder with the last file in it, as buckets
        do by themselves; `StorageError` if it cannot be removed."""
        full = self._full(path)
        with self._reaching(path), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(full)
        if self._is_local and "/" in path:
            with contextlib.suppress(OSError):  # there are others
                Path(full).parent.rmdir()

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


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
