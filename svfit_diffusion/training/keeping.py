"""What to do where a run cannot write: go on without it, or write elsewhere."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from svfit_diffusion.errors import UnsavedError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, write_adapter

logger = logging.getLogger(__name__)

_MEMORY = Path("/dev/shm")
"""On Linux, memory as a folder: it has room when disks are full, and lasts to the next start."""


class Shortages:
    """What a run has to do without, since it cannot be written; each is warned of once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    @contextlib.contextmanager
    def going_on_without(self, what: str) -> Iterator[None]:
        """Go on if something that a run can do without cannot be written."""
        try:
            yield
        except OSError as error:
            if what not in self._known:
                logger.warning("Going on without %s: %s", what, error)
            self._known.add(what)


def save_somewhere(adapter: Adapter, folder: Path) -> Path:
    """Write an adapter into a folder, or else where there is room, and say where.

    Returns:
        The file.

    Raises:
        UnsavedError: there is room nowhere.
    """
    path = folder / WEIGHTS_NAME
    try:
        write_adapter(path, adapter)
        return path
    except OSError as error:
        reason = error
    for place in _elsewhere():
        with contextlib.suppress(OSError), _new_folder(place) as new:
            write_adapter(new / WEIGHTS_NAME, adapter)
            logger.warning("The adapter is in %s, move it from there: %s", new, reason)
            return new / WEIGHTS_NAME
    raise UnsavedError(
        f"the adapter is in memory only ({reason}): make room and write it by "
        f"svfit_diffusion.files.adapter.write_adapter(path, error.adapter), or resume the last "
        f"checkpoint",
        adapter,
    ) from reason


def _elsewhere() -> Iterator[Path]:
    yield Path.cwd()
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path.home()
    with contextlib.suppress(OSError):  # no folder for temporary files
        yield Path(tempfile.gettempdir())
    if _MEMORY.is_dir():
        yield _MEMORY


@contextlib.contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """A folder of a new name, which vanishes again on an error."""
    folder = Path(tempfile.mkdtemp(prefix="svfit-", dir=place))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
