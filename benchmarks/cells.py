"""Cells of the quality benchmark: one training run each, judged, and kept on disk."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.extractors import Extractor, HubExtractor, Seen, ToyboxExtractor
from benchmarks.finetune import Recipe, control_images, subject_images, train
from benchmarks.measuring import isolated
from benchmarks.methods import Adapted, find_method
from benchmarks.report import CACHE, Row
from benchmarks.scoring import Scorer
from benchmarks.subjects import Subject, read_subject
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.photos import Photo, load_photos

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
        return _file_stem(self.label())


def _file_stem(text: str) -> str:
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


class Bench:
    """A base model with everything that training on it and judging it need.

    Args:
        setup: names all of it.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._pipe = StableDiffusionPipeline.from_pretrained(
            setup.base, safety_checker=None, requires_safety_checker=False
        ).to(setup.device)
        self._pipe.set_progress_bar_config(disable=True)
        self._scorers: dict[str, Scorer] = {}
        self._controls: dict[tuple[str, int], Seen] = {}

    @functools.cached_property
    def _extractor(self) -> Extractor:
        if self.setup.extractors == "hub":
            return HubExtractor(self.setup.device)
        samples = Path(__file__).resolve().parent.parent / "samples"
        return ToyboxExtractor(samples / "judges", Path(self.setup.base) / "tokenizer")

    def prepare(self, subjects: Sequence[str]) -> None:
        """Read all subjects, so that errors come first, and make the class images that lack."""
        recipe = self.setup.recipe
        arguments = {
            "num_inference_steps": recipe.inference_steps,
            "guidance_scale": recipe.guidance,
        }
        for subject in map(self.subject, subjects):
            self._scorer(subject)
            if recipe.prior_loss_weight:
                generate_class_images(
                    self._pipe,
                    self._class_folder(subject),
                    subject.class_prompt,
                    _CLASS_IMAGES,
                    arguments,
                    batch_size=16,
                    seed=0,
                )

    def subject(self, name: str) -> Subject:
        """Read a subject's folder."""
        return read_subject(self.setup.subjects_dir / name)

    def fresh_pipe(self) -> Any:
        """A pipeline whose denoiser and text encoder are copies of the base's, frozen."""
        parts = dict(self._pipe.components)
        for name in ("unet", "text_encoder"):
            parts[name] = copy.deepcopy(parts[name]).requires_grad_(False)
        return StableDiffusionPipeline(**parts, requires_safety_checker=False)

    def run(self, cell: Cell) -> tuple[Row, list[Image.Image]]:
        """Train, and judge on the way and in the end."""
        started = time.perf_counter()
        recipe = self.setup.recipe
        subject = self.subject(cell.subject)
        pipe = self.fresh_pipe()
        adapted = self._adapt(pipe, cell.method)
        steps = recipe.steps if adapted.parameters else 0
        shares = _LOOKS if cell.method in CURVE_METHODS and cell.seed == 0 else ()
        looks: dict[int, Row] = {}
        trained, clock = 0.0, time.perf_counter()
        for step in self._train(pipe, adapted, cell, subject) if steps else ():
            trained += time.perf_counter() - clock
            if step in {round(share * steps) for share in shares}:
                looks[step], _ = self._judge(pipe, cell, subject)
            clock = time.perf_counter()
        final, images = self._judge(pipe, cell, subject)
        return {
            **final,
            "parameters": adapted.value_count(),
            "adapter_bytes": adapted.file_bytes(),
            "train_seconds": trained,
            "looks": looks,
            "seconds": time.perf_counter() - started,
        }, images

    def train_few(self, method: str, subject: Subject, steps: int) -> None:
        """Train some steps, to see what that takes."""
        pipe = self.fresh_pipe()
        adapted = self._adapt(pipe, method)
        if adapted.parameters:
            cell = Cell(method, find_method(method).learning_rates[0], subject.name, 0)
            for step in self._train(pipe, adapted, cell, subject):
                if step == steps:
                    break

    def _adapt(self, pipe: Any, method: str) -> Adapted:
        torch.manual_seed(0)  # PEFT draws its starting values
        models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        return find_method(method).adapt(models, self.setup.recipe.steps)

    def _train(self, pipe: Any, adapted: Adapted, cell: Cell, subject: Subject) -> Any:
        class_photos = self._class_photos(subject)
        recipe, rate = self.setup.recipe, cell.learning_rate
        return train(pipe, adapted, subject, class_photos, recipe, rate, cell.seed)

    def _judge(self, pipe: Any, cell: Cell, subject: Subject) -> tuple[Row, list[Image.Image]]:
        scorer = self._scorer(subject)
        recipe = self.setup.recipe
        images = subject_images(pipe, scorer.prompts, recipe, cell.seed)
        control = scorer.see(control_images(pipe, scorer.drift_prompts, recipe, cell.seed))
        scores = scorer.score(images, control, self._base_control(scorer, subject, cell.seed))
        return asdict(scores), images

    def _base_control(self, scorer: Scorer, subject: Subject, seed: int) -> Seen:
        """What the base makes of the prompts that should not change."""
        key = (subject.name, seed)
        if key not in self._controls:
            images = control_images(self._pipe, scorer.drift_prompts, self.setup.recipe, seed)
            self._controls[key] = scorer.see(images)
        return self._controls[key]

    def _scorer(self, subject: Subject) -> Scorer:
        if subject.name not in self._scorers:
            self._scorers[subject.name] = Scorer(subject, self._extractor)
        return self._scorers[subject.name]

    def _class_folder(self, subject: Subject) -> Path:
        return self.setup.folder / "class_images" / subject.class_name

    def _class_photos(self, subject: Subject) -> list[Photo]:
        if not self.setup.recipe.prior_loss_weight:
            return []
        folder = self._class_folder(subject)
        return load_photos(folder, subject.class_prompt)[:_CLASS_IMAGES]


@functools.cache
def _bench(setup: Setup) -> Bench:
    """One per process."""
    torch.set_num_threads(1)
    return Bench(setup)


def run_cell(setup: Setup, cell: Cell) -> None:
    """Run a cell in a worker process and keep it."""
    row, images = _bench(setup).run(cell)
    CellStore(setup).write(cell, row, images)


def measure_peak_memory(setup: Setup, method: str) -> int:
    """Peak resident memory of a process that trains some steps, in bytes; a GPU's if on one."""
    path = setup.folder / "memory" / f"{_file_stem(method)}.json"
    if not path.exists():
        peak = isolated(_peak_memory, setup, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, functools.partial(Path.write_text, data=json.dumps(peak)))
    return int(json.loads(path.read_text()))


def _peak_memory(setup: Setup, method: str) -> int:
    bench = _bench(setup)
    name = next(path.parent.name for path in sorted(setup.subjects_dir.glob("*/subject.json")))
    bench.train_few(method, bench.subject(name), steps=3)
    if setup.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
