"""A subject's folder on a worker's machine, and its copy in the store."""

from __future__ import annotations

from collections.abc import Iterable, Set
from pathlib import Path, PurePosixPath

from svfit_diffusion.files.sums import SUMS_NAME
from svfit_diffusion.fleet.store import Store

_Stamp = tuple[int, int] | None


class Mirror:
    """Copies a folder to the store, what is new of it, in an order that a death may cut off.

    A checkpoint counts once its sums are there, so these go last.

    Args:
        store: where the copy is.
        name: of it there.
        folder: the one here.

    Attributes:
        folder: as given.
    """

    def __init__(self, store: Store, name: str, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._name = name
        self._there: dict[str, _Stamp] = {}

    def pull(self) -> None:
        """Make the folder what its copy is, without checkpoints that are not whole.

        Raises:
            StorageError: the store cannot be reached.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        names = self._store.files(self._name)
        self._there = dict.fromkeys(names)
        for name in whole(names):
            self._store.get(f"{self._name}/{name}", self.folder / name)
            self._there[name] = _stamp(self.folder / name)

    def push(self) -> None:
        """Make the copy what the folder is.

        Raises:
            StorageError: the store cannot be reached; what was copied is noted.
        """
        here = {
            path.relative_to(self.folder).as_posix(): _stamp(path)
            for path in self.folder.rglob("*")
            if path.is_file() and not _is_hidden(path.relative_to(self.folder))
        }
        changed = {name for name, stamp in here.items() if self._there.get(name) != stamp}
        self._remove({sums_of(name) for name in changed if is_of_checkpoint(name)})
        for name in sorted(here, key=order):
            if self._there.get(name) != here[name]:
                self._store.put(self.folder / name, f"{self._name}/{name}")
                self._there[name] = here[name]
        self._remove(self._there.keys() - here.keys())

    def _remove(self, names: Set[str]) -> None:
        """Remove those of these files that are there."""
        for name in sorted(self._there.keys() & names):
            self._store.remove(f"{self._name}/{name}")
            del self._there[name]


def whole(names: Iterable[str]) -> list[str]:
    """Files without those of checkpoints that were not copied to the end."""
    known = set(names)
    return [name for name in sorted(known) if not is_of_checkpoint(name) or sums_of(name) in known]


def order(name: str) -> tuple[bool, bool, str]:
    """Sorts files into the order in which they are copied."""
    return is_of_checkpoint(name), PurePosixPath(name).name == SUMS_NAME, name


def is_of_checkpoint(name: str) -> bool:
    """Whether a file of a subject's folder belongs to a checkpoint."""
    return name.startswith("checkpoint-") and "/" in name


def sums_of(name: str) -> str:
    """The file with the sums of the checkpoint that a file belongs to."""
    return str(PurePosixPath(name).with_name(SUMS_NAME))


def _is_hidden(path: Path) -> bool:
    """What is being written, or kept for the time of a run only."""
    return any(part.startswith(".") for part in path.parts)


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
