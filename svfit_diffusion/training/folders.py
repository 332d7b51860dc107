"""Which files of a folder are photos, and which are not and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from svfit_diffusion.training.reading import NEEDS_HEIC, photo_suffixes

MASK = ".mask.png"
REFERENCE = ".condition.png"
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

_RAW = "a camera's raw file; develop it to a JPEG or PNG"
_OTHER = "of a kind that is not read; save it as a JPEG or PNG"
_VIDEO = "a video; save the frames you mean as pictures"
_NOT_TAKEN = {
    NEEDS_HEIC: (".heic", ".heif", ".hif"),
    _RAW: (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    _OTHER: (".jxl", ".jp2", ".psd", ".xcf", ".svg", ".eps", ".pdf", ".tga", ".exr", ".ppm"),
    _VIDEO: (".mp4", ".mov", ".m4v", ".avi", ".webm", ".mkv"),
    f"captions are read from {', '.join(METADATA_NAMES)} and text files": (".parquet",),
}
_REASONS = {suffix: reason for reason, suffixes in _NOT_TAKEN.items() for suffix in suffixes}
"""Why a file is left out, by its suffix; of others nobody expects that they are photos."""

_KOHYA = re.compile(r"(\d{1,3})_(.*\S.*)")  # more repeats are a year, as in 2024_summer


@dataclass(frozen=True)
class PhotoFile:
    """A file that is a photo by its name.

    Attributes:
        path: where it is.
        repeats: how often it comes in an epoch.
        prompt: what the name of its folder says, if that is a prompt.
    """

    path: Path
    repeats: int = 1
    prompt: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that one may have meant, and that is no photo.

    Attributes:
        name: relative to the folder that was looked into.
        reason: why it is left out.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def image_files(folder: Path) -> list[Path]:
    """The photos in a folder, sorted by name: no hidden files, no masks, no images to edit."""
    return sorted(path for path in folder.iterdir() if _is_photo(path))


def look_into(folder: Path) -> tuple[list[PhotoFile], list[LeftOut]]:
    """The photos in a folder and in folders in it that are named as kohya-ss names them.

    `10_sks dog/` holds photos with the prompt `sks dog`, each of which comes ten times in an epoch.
    """
    photos = [PhotoFile(path) for path in image_files(folder)]
    left_out: list[LeftOut] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        named = kohya_name(path.name) if path.is_dir() else None
        if named and named[0]:
            photos += [PhotoFile(inside, *named) for inside in image_files(path)]
            left_out += _left_out(path, f"{path.name}/")
    return photos, [*_left_out(folder, ""), *left_out]


def kohya_name(name: str) -> tuple[int, str] | None:
    """Repeats and prompt in a folder's name such as `10_sks dog`; None where it has none."""
    found = _KOHYA.fullmatch(name)
    return (int(found[1]), found[2].strip()) if found else None


def _left_out(folder: Path, prefix: str) -> Iterator[LeftOut]:
    for path in sorted(folder.iterdir()):
        reason = "" if path.name.startswith(".") else _why_not(path, inside=bool(prefix))
        if reason:
            yield LeftOut(prefix + path.name, reason)


def _why_not(path: Path, *, inside: bool) -> str:
    """Why what one may have meant for a photo is none; empty otherwise."""
    if path.is_dir():
        named = kohya_name(path.name)
        if named and not inside:
            return "" if named[0] else "no repeats"
        return "a folder; only those named like '10_sks dog' are looked into"
    suffix = path.suffix.lower()
    return "" if suffix in photo_suffixes() else _REASONS.get(suffix, "")


def _is_photo(path: Path) -> bool:
    return (
        path.suffix.lower() in photo_suffixes()
        and path.is_file()
        and not path.name.startswith(".")
        and not path.name.lower().endswith((MASK, REFERENCE))
    )
