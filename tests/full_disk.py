"""Disks without room, and files that may not grow."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def fill(patch: pytest.MonkeyPatch, *folders: Path, error: int = errno.ENOSPC) -> None:
    """From now on nothing can be written in these folders."""
    open_file, os_open, os_mkdir = io.open, os.open, os.mkdir

    def is_full(path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        here = Path(path).absolute()
        return any(folder.absolute() in (here, *here.parents) for folder in folders)

    def refuse(path: object) -> None:
        raise OSError(error, os.strerror(error), str(path))

    def checked_open(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+") and is_full(path):
            refuse(path)
        return open_file(path, mode, *args, **kwargs)

    def checked_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and is_full(path):
            refuse(path)
        return os_open(path, flags, *args, **kwargs)

    def checked_mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if is_full(path):
            refuse(path)
        os_mkdir(path, *args, **kwargs)

    patch.setattr(os, "mkdir", checked_mkdir)
    patch.setattr(io, "open", checked_open)
    patch.setattr(builtins, "open", checked_open)
    patch.setattr(os, "open", checked_os_open)


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """For a while no file of this process may grow beyond so many bytes: the system sees to it, in
    whatever language a file is written.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
