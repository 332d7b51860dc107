"""Cells of the quality benchmark: one training run each, kept on disk with its figures."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from benchmarks.finetune import Recipe
from benchmarks.report import CACHE, Row
from svfit_diffusion.files.atomic import write_atomically

_CLASS_IMAGES = 32
CURVE_METHODS = ("SVFit", "LoRA, r=8")
"""Methods that are also judged on the way, with the first seed."""

_LOOKS = (0.25, 0.5)
"""Where on the way, as shares of the steps."""


@dataclass(frozen=True)
class Setup:
    """What all cells of a benchmark share; cells of another do not compare.

    Attributes:
        base: folder or hub id of the base pipeline.
        subjects_dir: folder of the subjects' folders.
        extractors: "toybox" or "hub".
        device: where to train and generate.
        recipe: of training and generating.
    """

    base: str
    subjects_dir: Path
    extractors: str
    device: str
    recipe: Recipe

    @functools.cached_property
    def folder(self) -> Path:
        """Where cells and class images are kept: another for other weights or settings."""
        digest = hashlib.sha256(self.extractors.encode())
        digest.update(json.dumps(asdict(self.recipe)).encode())
        base = Path(self.base)
        if not base.is_dir():
            digest.update(self.base.encode())
        for path in sorted([*base.rglob("*.safetensors"), *base.rglob("scheduler_config.json")]):
            digest.update(path.read_bytes())
        return CACHE / "quality" / digest.hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        method: its name.
        learning_rate: at its peak.
        subject: name of the subject's folder.
        seed: of the examples, the noise and the images.
    """

    method: str
    learning_rate: float
    subject: str
    seed: int

    def label(self) -> str:
        """For people."""
        return f"{self.method}, {self.learning_rate:g}, {self.subject}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """Of its files."""
        return file_stem(self.label())


def file_stem(text: str) -> str:
    """The text as a file's name."""
    return re.sub(r"[^\w.]+", "_", text)


class CellStore:
    """The finished cells of a setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._folder = setup.folder / "cells"
        self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self._path(cell).exists()

    def read(self, cell: Cell) -> Row:
        """Its figures; `looks` holds those on the way, by step."""
        row: Row = json.loads(self._path(cell).read_text(encoding="utf-8"))
        return row

    def write(self, cell: Cell, row: Row, images: Sequence[Image.Image]) -> None:
        """Keep a finished cell; its figures come last and mark it so."""
        sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for index, image in enumerate(images):
            sheet.paste(image, (index * image.width, 0))
        sheet.save(self._path(cell).with_suffix(".png"))
        text = json.dumps(row, indent=1)
        write_atomically(self._path(cell), functools.partial(Path.write_text, data=text))

    def image(self, cell: Cell, index: int) -> Image.Image:
        """One of its images, in the order of the prompts."""
        with Image.open(self._path(cell).with_suffix(".png")) as sheet:
            side = sheet.height
            return sheet.convert("RGB").crop((index * side, 0, (index + 1) * side, side))

    def seconds(self) -> float:
        """What all cells took together, one after the other."""
        paths = self._folder.glob("*.json")
        return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in paths)

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.stem}.json"
