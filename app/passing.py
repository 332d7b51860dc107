"""What is there for a day: uploads, and pictures that pages show on the way. Gradio deletes both
after that time, but not what a process leaves behind that died.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from anyio import to_thread
from gradio.utils import get_upload_folder

from .disk import Stored, remove, stored, trim

_PLACE = "GRADIO_TEMP_DIR"
_SECONDS = 20
DAY = 24 * 60 * 60


def lie_in(folder: Path) -> None:
    """Keep them in a folder, and remove what is old there; unless Gradio was told another."""
    if not os.environ.get(_PLACE):
        os.environ[_PLACE] = str(folder.resolve())
        remove_older(folder, DAY)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove the files of a folder that nobody has touched for so long, and folders left empty."""
    files = stored(folder.rglob("*"))
    remove(file for file in files if time.time() - file.time > seconds)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


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
    """The files that components have written for pages."""
    written = set().union(*(set(files) for files in blocks.temp_file_sets))
    place = Path(get_upload_folder()).resolve()
    paths = map(Path, written - set(blocks.upload_file_set))
    return stored(path for path in paths if place in path.resolve().parents)
