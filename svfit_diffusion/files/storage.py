"""What to say where something cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svfit_diffusion.errors import StorageError

_ANOTHER = "choose a folder where there is"
_WAYS_OUT = {
    errno.ENOSPC: f"make room there, or {_ANOTHER}",
    errno.EDQUOT: f"your quota is used up: make room there, or {_ANOTHER}",
    errno.EFBIG: "larger files are not allowed there: choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write",
    errno.EPERM: "choose a folder that you may write",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why something could not be written at `path`.

    Raises:
        StorageError: instead of any `OSError`, with its number.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0)
        sentence = f"cannot write {path}: {error.strerror or error}"
        explained = StorageError(f"{sentence}; {way_out}" if way_out else sentence)
        explained.errno = error.errno
        raise explained from error
