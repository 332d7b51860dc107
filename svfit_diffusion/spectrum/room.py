"""Whether a disk has room for bases."""

from __future__ import annotations

import shutil
from pathlib import Path

from svfit_diffusion.errors import CacheError

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """A folder, or what there is of the way to it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def require_room(folder: Path, size: int) -> None:
    """Raise `CacheError` if the disk of a folder has not so many bytes free."""
    free = free_bytes(folder)
    if size > free:
        raise CacheError(
            f"the bases take up to {in_units(size)} and {folder} has {in_units(free)} free; make "
            f"room there, or set SVFIT_CACHE to a folder on another disk"
        )


def in_units(size: int) -> str:
    """A number of bytes, to be read."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / 1024**power:.1f} {_UNITS[power]}" if power else f"{size} {_UNITS[0]}"
