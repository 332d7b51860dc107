"""The pictures that a visitor had drawn, over sessions: found by their words, with favourites."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.files.json_text import parse_json

from .disk import MEGABYTE, Stored, oldest, remove, stored, total
from .errors import BusyError, SettingError, UploadError
from .picture import PictureSettings
from .png_metadata import read_settings, save_picture
from .settings import Limits
from .visitors import HOUSE, current_visitor

FAVOURITES = "favourites.json"
"""Name of the file, in each folder, that lists favourites; nobody else's business."""

_VISITORS = "[0-9a-f]" * 32
"""Pattern of the names of visitors' folders."""

_SETTLED = 30 * 24 * 60 * 60
"""Seconds for which a picture makes room for nobody but its visitor."""

_KNOWN = 50_000
"""Pictures whose settings stay in memory, a kilobyte each; more than one visitor has room for."""

_BYTES_PER_PIXEL = 3  # of noise, of which nothing can be compressed


class Album:
    """Pictures in a folder for each visitor.

    Args:
        folder: of all of them; the house's own pictures lie there, others' in folders below it.
        limits: of what is read.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._lock = threading.Lock()
        self._settings = lru_cache(_KNOWN)(self._read_settings)

    @property
    def folder(self) -> Path:
        """Of the present visitor."""
        owner = current_visitor().owner
        if owner == HOUSE:
            return self._folder
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def keep(self, image: Image.Image, settings: PictureSettings) -> Path:
        """Add a picture, and return its path; raises as `save_picture`."""
        return save_picture(self.folder, image, settings)

    def make_room(self, pixels: int) -> int:
        """Let the oldest of the present visitor's pictures make room for new ones, if need be.

        Favourites never do. Where all albums together are full, so do other visitors' pictures
        that are a month old. The pictures of whoever runs the app have no bound, and always stay.

        Args:
            pixels: of the new ones together.

        Returns:
            How many of the visitor's had to go.

        Raises:
            BusyError: there is none; nothing is removed.
        """
        if (own := self.folder) == self._folder:
            return 0
        limits = self._limits
        needed = pixels * _BYTES_PER_PIXEL
        with self._lock:
            everyones = stored(self._folder.glob(f"{_VISITORS}/**/*.png"))
            may_go = self._may_go(everyones, own)
            owns = {file for file in everyones if own in file.path.parents}
            excess = total(owns) + needed - limits.max_visitor_picture_megabytes * MEGABYTE
            going = oldest([file for file in may_go if file in owns], excess)
            if total(going) < excess:
                raise BusyError(
                    "Your album has no room beside its favourites: make some of them no favourites "
                    "any more, and the oldest make room."
                )
            excess = total(everyones) + needed - limits.max_all_picture_megabytes * MEGABYTE
            others = [file for file in may_go if file not in set(going)]
            going += oldest(others, excess - total(going))
            if total(going) < excess:
                raise BusyError("The app has no room for more pictures; try again another day.")
            remove(going)
        return len(owns & set(going))

    def _may_go(self, everyones: list[Stored], own: Path) -> list[Stored]:
        """Pictures that make room for those of the folder `own`, the oldest first."""
        settled = time.time() - _SETTLED
        marked = {folder: _favourites(folder) for folder in self._folder.glob(_VISITORS)}
        may_go = []
        for file in everyones:
            folder = self._folder / file.path.relative_to(self._folder).parts[0]
            names = marked.get(folder)
            if names is None or file.path.name in names:
                continue
            if folder == own or file.time < settled:
                may_go.append(file)
        return may_go

    def find(
        self, words: str = "", favourites_only: bool = False, most: int = 60
    ) -> list[tuple[Path, PictureSettings]]:
        """The present visitor's pictures, the newest first.

        Args:
            words: all of which are in the prompt or in an adapter's name.
            favourites_only: leave out all others.
            most: how many, at most.
        """
        wanted = words.casefold().split()
        favourites = self.favourites() if favourites_only else None
        found = []
        for path, settings in self._pictures():
            text = " ".join((settings.prompt, *settings.adapters)).casefold()
            if favourites is not None and path.name not in favourites:
                continue
            if all(word in text for word in wanted):
                found.append((path, settings))
            if len(found) == most:
                break
        return found

    def favourites(self) -> set[str]:
        """Names of the files that the present visitor likes best."""
        return _favourites(self.folder) or set()

    def toggle_favourite(self, path: Path) -> bool:
        """Make a picture a favourite, or no longer; returns whether it is one now.

        Raises:
            SettingError: it is not in the album.
        """
        if path.parent != self.folder or not path.exists():
            raise SettingError("Choose a picture of the album first.")
        with self._lock:
            changed = self.favourites() ^ {path.name}
            text = json.dumps(sorted(changed), indent=1)
            target = self.folder / FAVOURITES
            write_atomically(target, lambda file: file.write_text(text, "utf-8"))
        return path.name in changed

    def _pictures(self) -> Iterator[tuple[Path, PictureSettings]]:
        """Those whose settings can be read; their names begin with the time."""
        for path in sorted(self.folder.glob("*.png"), reverse=True):
            settings = self._settings(path)
            if settings is not None:
                yield path, settings

    def _read_settings(self, path: Path) -> PictureSettings | None:
        """Of a picture, None where they cannot be read."""
        try:
            return read_settings(path, self._limits)
        except (UploadError, OSError):
            return None


def _favourites(folder: Path) -> set[str] | None:
    """Names of the files that are listed in a folder; None where the list cannot be read."""
    path = folder / FAVOURITES
    try:
        names = parse_json(path.read_text("utf-8")) if path.exists() else []
    except (ValueError, OSError):
        return None
    if not isinstance(names, list):
        return None
    return {name for name in names if isinstance(name, str)}
