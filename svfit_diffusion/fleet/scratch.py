"""A folder that a worker works in, gone after it, be it by the next one on its machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from svfit_diffusion.files.atomic import make_folder
from svfit_diffusion.files.storage import writing

_PREFIX, _LOCK = "svfit-fleet-", "lock"
_SETTLED = 60.0  # seconds after which whoever makes a folder has locked it


class LockedFolder:
    """A new folder of this process's alone, which first removes those of processes that died.

    Args:
        parent: where; the system's place for temporary files if not given.

    Raises:
        StorageError: there is no room or no permission.

    Attributes:
        path: of it.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        make_folder(parent)
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        with writing(parent):
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = FileLock(self.path / _LOCK)
            self._lock.acquire()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder, unless a process holds it or another user's is it."""
    lock = folder / _LOCK
    with contextlib.suppress(OSError, Timeout):
        if time.time() - lock.stat().st_mtime > _SETTLED:
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder)
