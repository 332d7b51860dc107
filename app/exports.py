"""Adapters in forms that other programs take."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from svfit_diffusion.files.atomic import write_atomically

from .base_model import BaseModel


def write_merged_pipeline(base: BaseModel, adapter: Path, path: Path) -> None:
    """Write base and adapter as one ordinary diffusers pipeline: a zip file of its folder.

    Args:
        base: the base model; it stays what it is.
        adapter: an adapter's file.
        path: the zip file to write, whole or not at all.

    Raises:
        CheckpointError: the adapter is damaged or does not fit.
        OSError: the file could not be written.
    """
    pipe = base.view()
    pipe.load_svfit_weights(adapter, show_progress=False)
    pipe.fuse_svfit()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        pipe.save_pretrained(folder)
        write_atomically(path, lambda target: _zip(Path(folder), target))


def _zip(folder: Path, target: Path) -> None:
    """A folder's files as a zip file, not compressed: weights do not shrink."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
