"""A library of adapters: a folder, or any place that fsspec knows, such as `s3://bucket/folder`."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from svfit_diffusion.errors import (
    AdapterNameError,
    CheckpointError,
    ConfigError,
    StorageError,
    clipped,
)
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, read_adapter
from svfit_diffusion.files.atomic import write_atomically

SUFFIX = ".safetensors"
_NAME = re.compile(r"\w[\w .+-]{0,62}\w|\w")


@dataclass(frozen=True)
class AdapterFile:
    """A file of the library.

    Attributes:
        name: of the adapter.
        bytes: of the file.
    """

    name: str
    bytes: int


class AdapterLibrary:
    """The adapters in a place: `NAME.safetensors`, or `NAME/pytorch_svfit_weights.safetensors` as
    training writes them. What is added becomes the former. Several processes may use one place.

    Args:
        url: the place; a folder is made if missing.

    Raises:
        ConfigError: no package at hand knows such places.
        StorageError: it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        try:
            # What others add must be seen at once.
            self._store, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"a library at {url} cannot be used: {clipped(error)}") from error
        self._lock = threading.Lock()
        with self._reached():
            self._store.makedirs(self._root, exist_ok=True)

    def files(self) -> list[AdapterFile]:
        """All adapters, sorted by name.

        Raises:
            StorageError: the library cannot be reached.
        """
        with self._reached():
            entries = self._store.find(self._root, maxdepth=2, detail=True)
        found: dict[str, int] = {}
        for path, entry in sorted(entries.items(), key=lambda item: -item[0].count("/")):
            name = self._name_of(path)
            if name is not None:
                found[name] = entry["size"]
        return [AdapterFile(name, found[name]) for name in sorted(found)]

    def version(self, name: str) -> str:
        """What tells an adapter's file from one of the same name before it.

        Raises:
            AdapterNameError: there is none of that name.
            StorageError: the library cannot be reached.
        """
        path = self._path(name)
        with self._reached():
            return str(self._store.ukey(path))[:16]

    def read(self, name: str) -> Adapter:
        """An adapter, checked whole.

        Raises:
            AdapterNameError: there is none of that name.
            CheckpointError: its file is damaged.
            StorageError: the library cannot be reached.
        """
        path = self._path(name)
        with self._reached():
            data: bytes = self._store.cat_file(path)
        return adapter_in(data, name)

    def add(self, name: str, data: bytes, check: Callable[[Adapter], None]) -> None:
        """Add an adapter, after it has been checked whole.

        Args:
            name: what to call it.
            data: of a file.
            check: raises if it cannot be used here.

        Raises:
            ConfigError: the name cannot be used.
            CheckpointError: it is damaged or no adapter.
            AdapterNameError: the name is taken.
            StorageError: the library cannot be reached, or has no room; nothing is added.
        """
        check_name(name)
        check(adapter_in(data, name))
        with self._lock, self._reached():
            if self._find(name):
                raise AdapterNameError(f"there is an adapter {name!r} already: delete it first")
            if isinstance(self._store, LocalFileSystem):
                write_atomically(Path(self._flat(name)), partial(Path.write_bytes, data=data))
            else:  # stores of objects take each whole or not at all
                self._store.pipe_file(self._flat(name), data)

    def delete(self, name: str) -> None:
        """Delete an adapter for good.

        Raises:
            AdapterNameError: there is none of that name.
            StorageError: the library cannot be reached.
        """
        self._path(name)
        with self._reached():
            self._store.rm(self._find(name))

    def _path(self, name: str) -> str:
        with self._reached():
            found = self._find(name) if _NAME.fullmatch(name) else []
        if not found:
            raise AdapterNameError(f"there is no adapter {clipped(name)!r}")
        return found[0]

    def _find(self, name: str) -> list[str]:
        """The files of that name: what was added hides what was trained."""
        paths = [self._flat(name), f"{self._root}/{name}/{WEIGHTS_NAME}"]
        return [path for path in paths if self._store.exists(path)]

    def _name_of(self, path: str) -> str | None:
        """The name of the adapter in a file; None if it is none."""
        *folder, file = path.removeprefix(f"{self._root}/").split("/")
        if folder:
            name = folder[0] if file == WEIGHTS_NAME else ""
        else:
            name = file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else ""
        return name if _NAME.fullmatch(name) else None

    def _flat(self, name: str) -> str:
        return f"{self._root}/{name}{SUFFIX}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """While within, failures of the place are `StorageError`."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"the library cannot be used: {clipped(error)}") from error


def check_name(name: str) -> None:
    """Raise `ConfigError` if `name` could not be a file name on every system."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"got {clipped(name)!r}; an adapter's name is of 1 to 64 letters, digits, blanks or "
            f". + - _ and begins and ends with a letter or a digit"
        )


def adapter_in(data: bytes, name: str) -> Adapter:
    """The adapter in the bytes of a file.

    Raises:
        CheckpointError: there is none, or it is damaged; `name` is what the message calls it.
    """
    with tempfile.TemporaryDirectory(prefix="svfit.") as folder:
        path = Path(folder) / f"{name}{SUFFIX}"
        path.write_bytes(data)
        try:
            return read_adapter(path)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(path), repr(name))) from None
