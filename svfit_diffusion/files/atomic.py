"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from svfit_diffusion.files.storage import writing

_PART = ".tmp"
"""Ends the names of what is being written, as `_REPLACED` those of what is about to go."""
_REPLACED = ".old"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_UMASK_LOCK = threading.Lock()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then move it into place.

    If writing fails (a full disk, say), what stood at `path` still does, and no other file is left.
    Once it has succeeded, a power cut changes nothing any more.

    Raises:
        StorageError: there is no room or no permission.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            # mkstemp makes private files; give it the permissions any new file would get.
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync(file: Path) -> None:
    """Have a file's contents on the disk before its name points to them."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    check: Callable[[Path], object] = lambda written: None,
) -> None:
    """Write a safetensors file atomically. The same tensors and metadata make the same bytes.

    Args:
        path: where it appears.
        tensors: by name.
        metadata: for its header.
        check: looks at the whole file before it appears; what it raises keeps it from appearing.

    Raises:
        StorageError: there is no room or no permission; a file that was there is untouched.
    """

    def write(target: Path) -> None:
        save_safetensors(target, tensors, metadata)
        _sort_metadata(target)
        check(target)

    write_atomically(path, write)


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """`safetensors.torch.save_file` of any tensors, with the system's errors.

    Raises:
        OSError: the file could not be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata in a safetensors file in order; the library writes them as they come.

    Only their order changes: Python and Rust write JSON strings in the same bytes.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
        assert len(text) == length
        file.seek(8)
        file.write(text)


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, then move it into place, instead of one there.

    If writing fails (a full disk, say), what stood at `path` still does, and nothing else is left.
    If the process dies at the worst of moments, `clean_up` brings back what stood there.

    Raises:
        StorageError: there is no room or no permission.
    """
    with writing(path):
        name = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        temporary = Path(name)
        try:
            write(temporary)
            # mkdtemp makes private folders.
            temporary.chmod(0o777 & ~_umask())
            for inside in temporary.rglob("*"):
                (_sync_folder if inside.is_dir() else _sync)(inside)
            _sync_folder(temporary)
            _move(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_folder(path.parent)


def _move(folder: Path, path: Path) -> None:
    """Rename a folder to `path`, and remove the one that is there, or leave it if that fails."""
    if not path.exists():
        folder.rename(path)
        return
    old = folder.with_suffix(_REPLACED)
    try:
        path.rename(old)
        folder.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder that is to last, and those above it, if need be.

    Raises:
        StorageError: there is no permission.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder; under its name it is there as a whole or not at all.

    Raises:
        StorageError: there is no permission.
    """
    with writing(path):
        gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        path.rename(gone)
        shutil.rmtree(gone)


def clean_up(folder: Path, name: str, idle: float = 0.0) -> None:
    """Undo what a process that died has left half done in a folder.

    What it was writing goes, and a folder that it was about to replace comes back.

    Args:
        folder: where it wrote; need not exist.
        name: of the files and folders, a pattern of `Path.glob`.
        idle: seconds without a change after which nobody is writing any more; 0 where nobody is.

    Raises:
        StorageError: there is no permission.
    """
    for ending in (_REPLACED, _PART):
        for left in folder.glob(f".{name}.{'?' * 8}{ending}"):
            with writing(left), contextlib.suppress(FileNotFoundError):  # another was faster
                if time.time() - left.lstat().st_mtime < idle:
                    continue
                own = left.with_name(left.name[1 : -len(f".{'?' * 8}{ending}")])
                if ending == _REPLACED and not own.exists():
                    left.rename(own)
                elif left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
