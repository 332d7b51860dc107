"""Cells of the quality benchmark: one training run each, whose figures are kept."""

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
from benchmarks.row_store import RUNS, RowStore

CURVE_METHODS = ("SVFit", "LoRA, r=8")
"""Methods that are also judged on the way, with the first seed."""


@dataclass(frozen=True)
class Setup:
    """What all cells of a benchmark share; cells of another do not compare.

    Attributes:
        base: folder or hub id of the base pipeline.
        subjects_dir: folder of the subjects' folders.
        extractors: "toybox" or "hub".
        device: where to train and generate.
        recipe: of training and generating.
        runs: folder of the files of finished cells.
    """

    base: str
    subjects_dir: Path
    extractors: str
    device: str
    recipe: Recipe
    runs: Path = RUNS

    @functools.cached_property
    def digest(self) -> str:
        """Another for other weights or settings."""
        digest = hashlib.sha256(self.extractors.encode())
        digest.update(json.dumps(asdict(self.recipe)).encode())
        base = Path(self.base)
        if not base.is_dir():
            digest.update(self.base.encode())
        for path in sorted([*base.rglob("*.safetensors"), *base.rglob("scheduler_config.json")]):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where images are kept, on this machine alone."""
        return CACHE / "quality" / self.digest


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


def file_stem(text: str) -> str:
    """The text as a file's name."""
    return re.sub(r"[^\w.]+", "_", text)


class CellStore(RowStore):
    """The finished cells of a setup; `looks` of a row holds its figures on the way, by step."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.runs / f"quality_{setup.digest}.jsonl")
        self.setup = setup

    def write_with_images(self, cell: Cell, row: Row, images: Sequence[Image.Image]) -> None:
        """Keep a finished cell; its figures come last and mark it so."""
        sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for index, image in enumerate(images):
            sheet.paste(image, (index * image.width, 0))
        self._sheet(cell).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(self._sheet(cell))
        self.write(cell, row)

    def has_images(self, cell: Cell) -> bool:
        """Whether its images are on this machine."""
        return self._sheet(cell).exists()

    def image(self, cell: Cell, index: int) -> Image.Image:
        """One of its images, in the order of the prompts."""
        with Image.open(self._sheet(cell)) as sheet:
            side = sheet.height
            return sheet.convert("RGB").crop((index * side, 0, (index + 1) * side, side))

    def _sheet(self, cell: Cell) -> Path:
        return self.setup.folder / "cells" / f"{file_stem(cell.label())}.png"
