"""Files that are in memory only while in use."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.errors import clipped
from svfit_diffusion.files.json_text import MAX_CHARACTERS, parse_json

_DTYPES = {"F16": torch.float16, "F32": torch.float32}


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
        entries, metadata = _parse(pages[8 : min(begin, 8 + MAX_CHARACTERS)])
        tensors = {name: _tensor(pages, begin, entry) for name, entry in entries.items()}
    except (LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"not a safetensors file of floats ({clipped(repr(error))})") from error
    return MappedFile(tensors, metadata, pages)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header; nothing else of the file is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, MAX_CHARACTERS):
            raise ValueError("not a safetensors file")
        try:
            return _parse(file.read(length))[1]
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a safetensors file ({clipped(repr(error))})") from error


def _parse(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of a header by the tensors' names, and the metadata."""
    entries = parse_json(header.decode())
    if not isinstance(entries, dict):
        raise TypeError("the header is no object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TypeError("the metadata are no strings")
    return entries, metadata


def _tensor(pages: mmap.mmap, begin: int, entry: dict[str, Any]) -> Tensor:
    """The tensor of an entry, in data that begin there; ValueError if it does not lie in them."""
    dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    # Checked here, since `frombuffer` does not notice a count of bytes that overflows.
    inside = 0 <= start <= end <= len(pages) - begin
    if any(size < 0 for size in shape) or not inside or end - start != count * dtype.itemsize:
        raise ValueError(f"shape {shape} at {start} to {end} does not fit the file")
    if not count:  # which `frombuffer` refuses
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=begin + start).reshape(shape)
