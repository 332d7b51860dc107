"""Tensors put aside for the time of a run, in memory or on disk."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from svfit_diffusion.errors import StorageError
from svfit_diffusion.files.atomic import make_folder, save_safetensors
from svfit_diffusion.files.storage import writing

logger = logging.getLogger(__name__)

SCRATCH_NAME = "encoded"
"""What folders of scratch are called, for `clean_up`."""


class Scratch:
    """Named tensors by key, kept in memory, or in files that vanish with this object.

    Where there is no room for files, a warning says so, and the rest is kept in memory.

    Args:
        folder: where the files go, in a folder of their own; None keeps all in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._memory: dict[Hashable, dict[str, Tensor]] = {}
        self._files: dict[Hashable, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._has_room = folder is not None
        if folder is not None:
            try:
                self._folder = _make_folder(folder)
            except StorageError as error:
                self._go_on_in_memory(error)

    def put(self, key: Hashable, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key."""
        if self._folder is not None and self._has_room:
            path = Path(self._folder.name) / f"{len(self._files)}.safetensors"
            try:
                with writing(path):
                    save_safetensors(path, tensors, {})
                self._files[key] = path
                return
            except StorageError as error:
                self._go_on_in_memory(error)
        self._memory[key] = dict(tensors)

    def get(self, key: Hashable) -> dict[str, Tensor] | None:
        """What was kept under a key, on the CPU if it comes from disk; None where nothing was."""
        if key in self._files:
            return load_file(self._files[key])
        return self._memory.get(key)

    def _go_on_in_memory(self, error: StorageError) -> None:
        self._has_room = False
        logger.warning("What is encoded from here on is kept in memory: %s", error)


def _make_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    make_folder(folder)
    with writing(folder):
        return tempfile.TemporaryDirectory(dir=folder, prefix=f".{SCRATCH_NAME}.", suffix=".tmp")
