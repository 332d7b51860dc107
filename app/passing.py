"""What is there for a day: uploads, exports, and pictures as pages show them.

It lies in a folder that Gradio hands out, whose name tells nothing of this machine. Gradio deletes
what is older, but not what a process leaves behind that died.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

from anyio import to_thread
from gradio.utils import get_upload_folder

from .disk import DAY, Stored, remove_older, stored, trim
from .errors import SettingError

_PLACE = "GRADIO_TEMP_DIR"
_SECONDS = 20


def take_place() -> None:
    """Have a folder of one's own for it, and remove what is old there; unless the environment names
    another.

    Raises:
        SettingError: somebody else has it.
    """
    if os.environ.get(_PLACE):
        return
    user = os.getuid() if hasattr(os, "getuid") else 0  # elsewhere each has temporary files apart
    place = Path(tempfile.gettempdir()).resolve() / f"svfit-app-{user}"
    place.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (place.is_symlink() or place.stat().st_uid != user):
        raise SettingError(f"{place} is somebody else's: name another folder by ${_PLACE}")
    os.environ[_PLACE] = str(place)
    remove_older(place, DAY)


def exports_folder() -> Path:
    """Folder of what visitors exported, of which Gradio makes no copies, as it lies there."""
    return Path(get_upload_folder()).resolve() / "exports"


async def bound_shown(blocks: Any, most: int) -> None:
    """Again and again, let the oldest pictures that pages showed make room.

    Args:
        blocks: Gradio's app.
        most: bytes that they may have. Uploads have bounds of their own, and stay.
    """
    while True:
        await asyncio.sleep(_SECONDS)
        await to_thread.run_sync(lambda: trim(_shown(blocks), most))


def _shown(blocks: Any) -> list[Stored]:
    """The files that components have written for pages, exports apart."""
    written = set().union(*(set(files) for files in blocks.temp_file_sets))
    place, exports = Path(get_upload_folder()).resolve(), exports_folder()
    paths = [Path(path) for path in written - blocks.upload_file_set]
    above = {path: set(path.resolve().parents) for path in paths}
    return stored(p for p in paths if place in above[p] and exports not in above[p])
