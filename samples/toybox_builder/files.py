"""Atomic replacement of files and folders, so that readers never see half of one."""

from __future__ import annotations

import shutil
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def replace_folder(source: Path, target: Path) -> None:
    """Move a finished folder into place of another with two renames."""
    retired = target.with_name(f".{target.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.replace(retired)
    source.replace(target)
    shutil.rmtree(retired, ignore_errors=True)
