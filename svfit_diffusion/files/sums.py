"""Checksums of the files in a folder, as `sha256sum -c SHA256SUMS` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from svfit_diffusion.errors import CheckpointError

SUMS_NAME = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write down what the files in a folder are.

    Raises:
        OSError: it could not be written.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    (folder / SUMS_NAME).write_text("".join(_line(path) for path in files), encoding="utf-8")


def check_sums(folder: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` unless a folder's files of these names are what was written down."""
    try:
        written = (folder / SUMS_NAME).read_bytes().splitlines(keepends=True)
        wrong = [name for name in names if _line(folder / name).encode() not in written]
    except OSError as error:
        raise CheckpointError(f"{folder} is incomplete: {error}") from error
    if wrong:
        raise CheckpointError(f"{folder} is damaged: {', '.join(wrong)} not as in {SUMS_NAME}")


def _line(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
