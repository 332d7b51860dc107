"""How much may be uploaded: at once, by a visitor, from an address, and by all of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import Limits
from ..visitors import BEHIND_ONE_ADDRESS, Visitor
from .allowance import Allowance

_MEGABYTE = 2**20
_HOUR = 3600
_DAY = 86400  # after which Gradio deletes what was uploaded


@dataclass(frozen=True)
class Room:
    """What may be uploaded now.

    Attributes:
        bytes: how much.
        files: how many.
        too_large: what to say if it is more bytes.
        too_many: what to say if it is more files.
    """

    bytes: int
    files: int
    too_large: str
    too_many: str


class Uploads:
    """Counts what is uploaded.

    Args:
        limits: what is allowed.
    """

    def __init__(self, limits: Limits) -> None:
        own, files = limits.max_visitor_megabytes * _MEGABYTE, limits.max_visitor_files
        self._limits = limits
        self._bytes = Allowance(own, _HOUR), Allowance(own * BEHIND_ONE_ADDRESS, _HOUR)
        self._files = Allowance(files, _HOUR), Allowance(files * BEHIND_ONE_ADDRESS, _HOUR)
        self._of_all = Allowance(limits.max_all_megabytes * _MEGABYTE, _DAY)

    def room(self, visitor: Visitor) -> Room:
        """What a visitor may upload now."""
        limits = self._limits
        once = limits.max_photos * limits.max_file_bytes
        own = min(once, _left(self._bytes, visitor))
        of_all = max(0, self._of_all.left("all"))
        if of_all < own:
            why = "The app has taken in as much as it can hold for now; try again tomorrow."
        else:
            why = (
                f"That is too much: {once // _MEGABYTE} MB may be uploaded at once, "
                f"{limits.max_visitor_megabytes} MB by one visitor within an hour."
            )
        many = f"One visitor may upload {limits.max_visitor_files} files within an hour."
        return Room(min(own, of_all), _left(self._files, visitor), why, many)

    def note(self, visitor: Visitor, size: int, files: int) -> None:
        """Count what a visitor has uploaded, in bytes and files."""
        for allowances, amount in ((self._bytes, size), (self._files, files)):
            for allowance, who in zip(allowances, (visitor.id, visitor.address), strict=True):
                allowance.take(who, amount)
        self._of_all.take("all", size)


def _left(allowances: tuple[Allowance, Allowance], visitor: Visitor) -> int:
    own, of_address = allowances
    return max(0, min(own.left(visitor.id), of_address.left(visitor.address)))
