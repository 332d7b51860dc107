"""Files that appear whole or not at all, and files that are in memory only while in use."""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_UMASK_LOCK = threading.Lock()
_DTYPES = {"F16": torch.float16, "F32": torch.float32}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then move it into place.

    If writing fails (a full disk, say), what stood at `path` still does, and no other file is left.

    Raises:
        OSError: as raised by `write` or the file system.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; give it the permissions any new file would get.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: the file could not be written; a file that was there is untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(target: Path) -> None:
        try:
            save_file(contiguous, target, metadata)
        except SafetensorError as error:  # its wrapping of the system's errors
            raise OSError(f"could not write {path}: {error}") from error

    write_atomically(path, write)


@dataclass(frozen=True)
class MappedFile:
    """The contents of a safetensors file, mapped into memory.

    Its pages are read when they are touched, and shared by all processes that map the file.

    Attributes:
        tensors: by name.
        metadata: from the header.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    _pages: mmap.mmap

    def release(self) -> None:
        """Take the pages out of this process's memory, where the system can do so.

        When they are touched again, they come back, as a rule from the system's file cache.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)


def map_safetensors(path: Path) -> MappedFile:
    """Map a safetensors file of float16 and float32 tensors.

    safetensors maps files as well, but keeps the handle with which pages are released.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = 8 + int.from_bytes(pages[:8], "little")
    try:
        header = json.loads(pages[8:begin])
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: torch.frombuffer(
                pages,
                dtype=_DTYPES[entry["dtype"]],
                count=math.prod(entry["shape"]),
                offset=begin + entry["data_offsets"][0],
            ).reshape(entry["shape"])
            for name, entry in header.items()
        }
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"not a safetensors file of floats ({error!r})") from error
    return MappedFile(tensors, metadata, pages)
