"""Adapters as visitors take them away: their files, and forms that other programs take."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
import tempfile
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

from svfit_diffusion.files.adapter import read_adapter, refuse_words
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.interchange import export_checkpoint, export_dense, export_lora

from .base_model import BaseModel
from .disk import DAY, MEGABYTE, remove_older, stored, total, trim
from .errors import BusyError
from .library import SUFFIX
from .public_names import copy_without_paths, public_name, without_paths
from .settings import Limits
from .visitors import HOUSE, current_visitor

_NAMES_OF_SOURCES = ("_name_or_path", "name_or_path")


class Form(str, Enum):
    """What other programs take."""

    LORA = "lora"
    """A LoRA that holds the whole change."""
    DENSE = "dense"
    """The change of every weight, smaller than an exact LoRA."""
    FOLDER = "folder"
    """The whole model with the adapter in it, as a zip file of a diffusers folder."""
    CHECKPOINT = "checkpoint"
    """The same as one file, of Stable Diffusion 1, 2 and XL."""


_MERGED = (Form.FOLDER, Form.CHECKPOINT)


class Exports:
    """Files that visitors may fetch. Where one lies cannot be guessed: it may be somebody's own.

    The oldest make room for new ones, and are made again when they are asked for.

    Args:
        folder: made when something is exported; whoever knows a file's path there may fetch it.
        base: the base model.
        limits: on what they take together.
    """

    def __init__(self, folder: Path, base: BaseModel, limits: Limits) -> None:
        self._folder = folder
        self._base = base
        self._most = limits.max_all_export_megabytes * MEGABYTE
        self._secret = secrets.token_bytes(32)
        remove_older(folder, DAY)  # of processes that are gone, whose secret is, too

    def adapter_file(self, name: str, adapter: Path) -> Path:
        """An adapter's file, which tells of no folders of this machine.

        Args:
            name: of the adapter.
            adapter: its file.

        Raises:
            CheckpointError: it is damaged.
            OSError: it could not be written.
        """
        path = self._place(name, adapter, SUFFIX)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda target: copy_without_paths(adapter, target))
        self._note(path)
        return path

    def written(self, form: Form, name: str, adapter: Path) -> Path:
        """An adapter in a form that other programs take.

        Args:
            form: which.
            name: of the adapter.
            adapter: its file.

        Raises:
            CheckpointError: the adapter is damaged or does not fit.
            InterchangeError: the base model has no such form, or a package for it is missing.
            BusyError: it is larger than all exports together may be.
            OSError: the file could not be written.
        """
        ending = ".zip" if form is Form.FOLDER else SUFFIX
        path = self._place(f"{name}_{form.value}", adapter, ending)
        if not path.exists():
            if form in _MERGED:
                self._check_size()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(form, adapter, path)
        self._note(path)
        return path

    def _write(self, form: Form, adapter: Path, path: Path) -> None:
        read = read_adapter(adapter)
        refuse_words(read, "write that")
        if form is Form.FOLDER:
            write_merged_pipeline(self._base, adapter, path)
            return
        public = dataclasses.replace(read, metadata=without_paths(read.metadata))
        pipe = self._base.view()
        if form is Form.LORA:
            export_lora(pipe, public, path)
        elif form is Form.DENSE:
            export_dense(pipe, public, path)
        else:
            export_checkpoint(pipe, [(public, 1.0)], path)

    def _check_size(self) -> None:
        """Raise `BusyError` where a merged model is too large for a visitor."""
        size = self._base.weight_bytes
        if size > self._most and current_visitor().owner != HOUSE:
            raise BusyError(
                f"A merged model has {size / MEGABYTE:.0f} MB, more than the app keeps for "
                f"visitors: take the adapter, and merge it where you have the base model."
            )

    def _note(self, path: Path) -> None:
        """Count a file as the newest, and let the oldest make room for it."""
        path.touch()
        others = stored(
            file
            for file in self._folder.glob("*/*")
            if file != path and not file.name.startswith(".")  # which are being written
        )
        trim(others, self._most - total(stored([path])))

    def _place(self, name: str, adapter: Path, suffix: str) -> Path:
        """Where an export lies, of this version of a file and in this process."""
        stat = adapter.stat()
        version = f"{adapter}\0{stat.st_mtime_ns}\0{stat.st_size}"
        folder = hmac.new(self._secret, version.encode(), hashlib.sha256).hexdigest()[:32]
        return self._folder / folder / f"{name}{suffix}"


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
        for file in Path(folder).rglob("*.json"):
            _forget_paths(file)
        write_atomically(path, lambda target: _zip(Path(folder), target))


def _forget_paths(file: Path) -> None:
    """Leave of where a configuration was loaded from no more than its name."""
    values = json.loads(file.read_text("utf-8"))
    if any(name in values for name in _NAMES_OF_SOURCES):
        file.write_text(json.dumps(_public(values), indent=2, ensure_ascii=False), "utf-8")


def _public(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: public_name(value) if name in _NAMES_OF_SOURCES and value else value
        for name, value in values.items()
    }


def _zip(folder: Path, target: Path) -> None:
    """A folder's files as a zip file, not compressed: weights do not shrink."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
