"""Tensors put aside for the time of a run, in memory or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class Scratch:
    """Named tensors by key, kept in memory, or in files that vanish with this object.

    Args:
        folder: where the files go, in a folder of their own; None keeps all in memory.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._memory: dict[Hashable, dict[str, Tensor]] = {}
        self._files: dict[Hashable, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="encoded-")

    def put(self, key: Hashable, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key.

        Raises:
            OSError: they could not be written.
        """
        if self._folder is None:
            self._memory[key] = dict(tensors)
            return
        path = Path(self._folder.name) / f"{len(self._files)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        self._files[key] = path

    def get(self, key: Hashable) -> dict[str, Tensor] | None:
        """What was kept under a key, on the CPU if it comes from disk; None where nothing was."""
        if key in self._files:
            return load_file(self._files[key])
        return self._memory.get(key)
