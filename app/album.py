"""The pictures that a visitor had drawn, over sessions: found by their words, with favourites."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.files.json_text import parse_json

from .errors import SettingError, UploadError
from .picture import PictureSettings
from .png_metadata import read_settings, save_picture
from .settings import Limits
from .visitors import HOUSE, current_visitor

_FAVOURITES = "favourites.json"


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
        self._read: dict[Path, PictureSettings | None] = {}

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
        path = self.folder / _FAVOURITES
        try:
            names = parse_json(path.read_text("utf-8")) if path.exists() else []
        except ValueError:
            names = []
        return (
            {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
        )

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
            target = self.folder / _FAVOURITES
            write_atomically(target, lambda file: file.write_text(text, "utf-8"))
        return path.name in changed

    def _pictures(self) -> Iterator[tuple[Path, PictureSettings]]:
        """Those whose settings can be read; their names begin with the time."""
        for path in sorted(self.folder.glob("*.png"), reverse=True):
            if path not in self._read:
                try:
                    self._read[path] = read_settings(path, self._limits)
                except (UploadError, OSError):
                    self._read[path] = None
            settings = self._read[path]
            if settings is not None:
                yield path, settings
