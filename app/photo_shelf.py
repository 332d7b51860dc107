"""Photos of visitors who have not trained yet, so that a reload of the page does not lose them.

Only where the uploads lie is kept, what is cut out of them and what is said of them: Gradio has the
files for a day.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .fairness import superfluous
from .photos import Crop, CroppedPhoto, take_in
from .settings import Limits
from .visitors import Visitor, current_visitor

_DRAFTS = 1000
"""Pages whose photos are known; beyond, those of whoever has most that are longest untouched go."""
_OWN_DRAFTS = 20
"""The same of one visitor."""

_Kept = tuple[Path, Crop, str]
_Key = tuple[str, str]


@dataclass
class _Draft:
    """The photos of a page, and whose they are."""

    visitor: Visitor
    photos: list[_Kept] = field(default_factory=list)


class PhotoShelf:
    """Photos by a key that only their visitor's browser knows, and for that visitor alone.

    Args:
        limits: on photos.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._drafts: OrderedDict[_Key, _Draft] = OrderedDict()

    def key(self, known: object) -> str:
        """The key that a browser has, if this server has given it, or else a new one."""
        with self._lock:
            if isinstance(known, str) and _own(known) in self._drafts:
                return known
            new = secrets.token_urlsafe(16)
            visitor = current_visitor()
            self._drafts[_own(new)] = _Draft(visitor)
            for key in [key for key in self._drafts if key[0] == visitor.id][:-_OWN_DRAFTS]:
                del self._drafts[key]
            while len(self._drafts) > _DRAFTS:
                del self._drafts[superfluous({k: d.visitor for k, d in self._drafts.items()})]
            return new

    def put(self, key: object, photos: Sequence[CroppedPhoto]) -> None:
        """Keep photos in place of those before; of an unknown key, none."""
        with self._lock:
            if isinstance(key, str) and (own := _own(key)) in self._drafts:
                kept = [(p.file, p.crop, p.caption) for p in photos if p.file]
                self._drafts[own].photos = kept
                self._drafts.move_to_end(own)

    def photos(self, key: object) -> list[CroppedPhoto]:
        """The photos of a key, read again; without those whose files are gone."""
        with self._lock:
            draft = self._drafts.get(_own(key)) if isinstance(key, str) else None
            kept = draft.photos if draft else []
        found = []
        for file, crop, caption in kept:
            if file.is_file():
                photos, _ = take_in([file], self._limits)
                found += [photo.with_crop(crop).with_caption(caption) for photo in photos]
        return found


def _own(key: str) -> _Key:
    """A key as the present visitor's."""
    return current_visitor().id, key
