"""A library of adapters: a folder, or any place that fsspec knows, such as `s3://bucket/folder`."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from svfit_diffusion.errors import AdapterNameError, CheckpointError, ConfigError, clipped
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, read_adapter
from svfit_diffusion.files.bucket import Bucket

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
        self._bucket = Bucket(url)
        self._lock = threading.Lock()
        self._bucket.make()

    def files(self) -> list[AdapterFile]:
        """All adapters, sorted by name.

        Raises:
            StorageError: the library cannot be reached.
        """
        sizes = self._bucket.files(depth=2)
        found: dict[str, int] = {}
        for path in sorted(
            sizes, key=_depth, reverse=True
        ):  # what was added hides what was trained
            name = _name_of(path)
            if name is not None:
                found[name] = sizes[path]
        return [AdapterFile(name, found[name]) for name in sorted(found)]

    def version(self, name: str) -> str:
        """What tells an adapter's file from one of the same name before it.

        Raises:
            AdapterNameError: there is none of that name.
            StorageError: the library cannot be reached.
        """
        return self._bucket.version(self._find(name)[0])[:16]

    def read(self, name: str) -> Adapter:
        """An adapter, checked whole.

        Raises:
            AdapterNameError: there is none of that name.
            CheckpointError: its file is damaged.
            StorageError: the library cannot be reached.
        """
        return adapter_in(self._bucket.read(self._find(name)[0]), name)

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
        with self._lock:
            if self._paths(name):
                raise AdapterNameError(f"there is an adapter {name!r} already: delete it first")
            self._bucket.write(f"{name}{SUFFIX}", data)

    def delete(self, name: str) -> None:
        """Delete an adapter for good.

        Raises:
            AdapterNameError: there is none of that name.
            StorageError: the library cannot be reached.
        """
        for path in self._find(name):
            self._bucket.remove(path)

    def _find(self, name: str) -> list[str]:
        """The files of an adapter, that to be read first; `AdapterNameError` if there are none."""
        found = self._paths(name) if _NAME.fullmatch(name) else []
        if not found:
            raise AdapterNameError(f"there is no adapter {clipped(name)!r}")
        return found

    def _paths(self, name: str) -> list[str]:
        paths = [f"{name}{SUFFIX}", f"{name}/{WEIGHTS_NAME}"]
        return [path for path in paths if self._bucket.exists(path)]


def _depth(path: str) -> int:
    return path.count("/")


def _name_of(path: str) -> str | None:
    """The name of the adapter in a file of a library; None if it is none."""
    *folder, file = path.split("/")
    if folder:
        name = folder[0] if file == WEIGHTS_NAME else ""
    else:
        name = file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else ""
    return name if _NAME.fullmatch(name) else None


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
