"""The adapter folder: what is in it, and adding, renaming and deleting without leaving it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from svfit_diffusion.errors import BaseMismatchError, SVFitError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, read_adapter
from svfit_diffusion.files.atomic import clean_up, make_folder, write_atomically
from svfit_diffusion.files.mapped import read_metadata
from svfit_diffusion.files.metadata import AdapterMetadata

from .base_model import BaseModel
from .disk import DAY, remove_older
from .errors import LibraryError, UploadError
from .public_names import copy_without_paths

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_ASIDE = ".deleted"
"""Folder of what was deleted and can be restored."""

_HOUR = 60 * 60
_NAME = re.compile(r"\w[\w .+-]{0,62}\w|\w")


@dataclass(frozen=True)
class FileVersion:
    """What tells a file from one of the same name before it."""

    path: Path
    modified_ns: int
    file_bytes: int


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter of the library.

    Attributes:
        name: what visitors call it.
        path: its file.
        file_bytes: size of the file.
        adapter: its shifts and metadata.
        misfit: why it does not go with the base model, in one sentence; None if it does.
    """

    name: str
    path: Path
    file_bytes: int
    adapter: Adapter
    misfit: str | None


class AdapterLibrary:
    """The adapters in a folder: `NAME.safetensors`, or `NAME/pytorch_svfit_weights.safetensors` as
    the training script writes them. What is added becomes the former.

    Args:
        folder: made if missing.
        base: the model that adapters must fit.
        max_bytes: largest adapter file that is taken in.
    """

    def __init__(self, folder: Path, base: BaseModel, max_bytes: int) -> None:
        self.folder = folder
        self._base = base
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._prompts: dict[FileVersion, str] = {}
        make_folder(folder)
        clean_up(folder, f"*{SUFFIX}", idle=_HOUR)  # others may be at work
        remove_older(folder / _ASIDE, DAY)

    def names(self) -> list[str]:
        """Names of all adapters, sorted."""
        return sorted(self._paths(), key=str.casefold)

    def path(self, name: str) -> Path:
        """The file of an adapter, such as for a download.

        Raises:
            LibraryError: there is no such adapter.
        """
        path = self._paths().get(name)
        if path is None:
            raise LibraryError(f"There is no adapter named “{name}”.")
        return path

    def versions(self) -> dict[str, FileVersion]:
        """The present version of every adapter's file, by name."""
        found = {}
        with self._lock:
            for name, path in self._paths().items():
                with contextlib.suppress(FileNotFoundError):  # taken away by somebody else
                    stat = path.stat()
                    found[name] = FileVersion(path, stat.st_mtime_ns, stat.st_size)
        return found

    def prompts(self) -> dict[str, str]:
        """The prompt that each adapter was trained with, by name, where its file says so."""
        versions, known = self.versions(), self._prompts
        prompts = {
            version: known[version] if version in known else _instance_prompt(version.path)
            for version in versions.values()
        }
        self._prompts = prompts
        return {name: prompts[version] for name, version in versions.items() if prompts[version]}

    def describe(self, name: str) -> AdapterInfo:
        """What is known of an adapter.

        Raises:
            LibraryError: there is no such adapter.
            CheckpointError: its file is damaged.
        """
        path = self.path(name)
        adapter = read_adapter(path)
        return AdapterInfo(name, path, path.stat().st_size, adapter, self._misfit(path))

    def add(self, source: Path, name: str | None = None, *, promised: bool = False) -> str:
        """Copy an adapter file into the library, after full validation, and return its name.

        Args:
            source: the file, uploaded or freshly trained.
            name: what to call it; by default as the file. A number is appended where it is taken.
            promised: whether there was room when its training began, so that there is now.

        Raises:
            UploadError: it is too large, no adapter, or does not fit the base model.
            LibraryError: the name cannot be used, nothing is taken in, or there is no room.
        """
        self.check_open()
        if not promised:
            self.check_room(source.stat().st_size)
        wanted = self.check_name(name or _default_name(source))
        label = source.name
        if source.suffix != SUFFIX:
            raise UploadError(f"“{label}” is no {SUFFIX} file, the only kind of adapter taken.")
        if source.stat().st_size > self._max_bytes:
            raise UploadError(
                f"“{label}” is larger than the {self._max_bytes // 2**20} MB allowed."
            )
        misfit = self._misfit(source)
        if misfit is not None:
            raise UploadError(f"“{label}” cannot be used. {misfit}")
        with self._lock:
            free = self._free_name(wanted)
            self._claim(free)
            write_atomically(self._flat(free), partial(copy_without_paths, source))
        return free

    def check_open(self) -> None:
        """Raise `LibraryError` where nothing is taken in."""

    def check_room(self, size: int = 0) -> None:
        """Raise `LibraryError` where there is no room for one more adapter of so many bytes."""

    def _claim(self, name: str) -> None:
        """Called with the name of an adapter that is about to be added."""

    def _hand_over(self, name: str, new_name: str) -> None:
        """Called with both names of an adapter that is about to be renamed."""

    def rename(self, name: str, new_name: str) -> str:
        """Give an adapter another name, and return it.

        Raises:
            LibraryError: there is no such adapter, or the new name is taken or cannot be used.
        """
        new_name = self.check_name(new_name)
        with self._lock:
            path = self.path(name)
            same = new_name.casefold() == name.casefold()
            if not same and self._is_taken(new_name):
                raise LibraryError(f"There is an adapter named “{new_name}” already.")
            self._hand_over(name, new_name)
            path.rename(self._flat(new_name))
        return new_name

    def delete(self, name: str) -> None:
        """Put an adapter aside, until it is restored or a day has gone by.

        Raises:
            LibraryError: there is no such adapter.
        """
        with self._lock:
            path = self.path(name)
            remove_older(self.folder / _ASIDE, DAY)
            self._deleted.mkdir(parents=True, exist_ok=True)
            os.utime(path)  # its day begins
            path.replace(self._deleted / f"{name}{SUFFIX}")

    def restore(self, name: str) -> str:
        """Bring back an adapter that was deleted, and return the name it has now.

        Raises:
            LibraryError: there is none of that name any more.
        """
        with self._lock:
            aside = self._deleted / f"{self.check_name(name)}{SUFFIX}"
            if not aside.exists():
                raise LibraryError(f"“{name}” is not there any more.")
            free = self._free_name(name)
            self._claim(free)
            aside.replace(self._flat(free))
        return free

    @property
    def _deleted(self) -> Path:
        """Where what the present visitor deletes is put aside."""
        return self.folder / _ASIDE

    @staticmethod
    def check_name(name: str) -> str:
        """`name` without surrounding blanks.

        Raises:
            LibraryError: it could not be a file name on every system.
        """
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise LibraryError(
                "A name consists of 1 to 64 letters, digits, blanks or . + - _ and begins and ends "
                "with a letter or a digit."
            )
        return name

    def _flat(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _paths(self) -> dict[str, Path]:
        found = {path.parent.name: path for path in self.folder.glob(f"*/{WEIGHTS_NAME}")}
        found |= {path.stem: path for path in self.folder.glob(f"*{SUFFIX}")}
        return {name: path for name, path in found.items() if _NAME.fullmatch(name)}

    def _is_taken(self, name: str) -> bool:
        return name.casefold() in map(str.casefold, self._paths())

    def _free_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while self._is_taken(name):
            name, number = f"{wanted}-{number}", number + 1
        return name

    def _misfit(self, path: Path) -> str | None:
        """Why the adapter in a file does not go with the base model, or None if it does."""
        try:
            self._base.view().load_svfit_weights(path, activate=False, show_progress=False)
        except SVFitError as error:
            logger.info("%s does not fit", path, exc_info=True)
            return misfit_reason(error)
        return None


def _instance_prompt(path: Path) -> str:
    """What an adapter's file says of its prompt; nothing where it is damaged."""
    try:
        return AdapterMetadata.from_header(read_metadata(path)).instance_prompt
    except (OSError, ValueError, SVFitError):
        return ""


def misfit_reason(error: SVFitError) -> str:
    """Why an adapter could not be loaded, as a sentence without paths and keys."""
    if isinstance(error, BaseMismatchError):
        return "It was trained on another base model than the one loaded here."
    return "It is no SVFit adapter for this base model, or it is damaged."


def _default_name(source: Path) -> str:
    return source.parent.name if source.name == WEIGHTS_NAME else source.stem
