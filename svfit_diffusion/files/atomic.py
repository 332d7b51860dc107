"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_UMASK_LOCK = threading.Lock()


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


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    check: Callable[[Path], object] = lambda written: None,
) -> None:
    """Write a safetensors file atomically.

    Args:
        path: where it appears.
        tensors: by name.
        metadata: for its header.
        check: looks at the whole file before it appears; what it raises keeps it from appearing.

    Raises:
        OSError: the file could not be written; a file that was there is untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(target: Path) -> None:
        try:
            save_file(contiguous, target, metadata)
        except SafetensorError as error:  # its wrapping of the system's errors
            raise OSError(f"could not write {path}: {error}") from error
        check(target)

    write_atomically(path, write)


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `path`, then move it into place, instead of one there.

    If writing fails (a full disk, say), what stood at `path` still does, and nothing else is left.

    Raises:
        OSError: as raised by `write` or the file system.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        # mkdtemp makes private folders.
        temporary.chmod(0o777 & ~_umask())
        _move(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(folder: Path, path: Path) -> None:
    """Rename a folder to `path`, and remove the one that is there, or leave it if that fails."""
    if not path.exists():
        folder.rename(path)
        return
    old = folder.with_suffix(".old")
    try:
        path.rename(old)
        folder.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
