"""Files that are in memory only while in use."""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
