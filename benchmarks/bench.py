"""Training runs of the quality benchmark: a base, and what it takes to train on it and judge."""

from __future__ import annotations

import copy
import functools
import json
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.adapting import Adapted, Models
from benchmarks.cells import CURVE_METHODS, Cell, CellStore, Setup, file_stem
from benchmarks.extractors import Extractor, HubExtractor, ToyboxExtractor
from benchmarks.finetune import OtherPhotos, drawing_arguments, train
from benchmarks.fronts import STRENGTHS
from benchmarks.judging import Judge
from benchmarks.measuring import isolated
from benchmarks.methods import find_method
from benchmarks.report import Row
from benchmarks.strengths import Line
from benchmarks.subjects import Subject, read_subject
from svfit_diffusion.families import family_of
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.training.base import BaseSource, load_base
from svfit_diffusion.training.checks import trained_text_encoders
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.photos import Photo, load_photos

_CLASS_IMAGES = 32
_GENERIC_IMAGES = 4
_GENERIC_PROMPTS = (
    "a photo of an apple on the table",
    "a photo of a train at night",
    "a photo of a guitar in a city",
    "a photo of a frog in the jungle",
    "a photo of a chair on a carpet",
    "a photo of a ship on the water",
    "a drawing of a lion",
    "a photo of a hat",
)
"""Of things that drift is not judged by."""

_LOOKS = (0.25, 0.5)
"""Where on the way a run is judged, as shares of the steps."""


class Bench:
    """A base model with everything that training on it and judging it need.

    Args:
        setup: names all of it.

    Raises:
        SVFitError: the base or its judges cannot be had, or do not fit together.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self._recipe = setup, setup.recipe
        self._pipe = load_base(BaseSource(setup.base)).to(setup.device)
        self._pipe.set_progress_bar_config(disable=True)
        self._family = family_of(self._pipe)
        self._judge = Judge(self._pipe, self._extractor(), setup.recipe)

    def prepare(self, subjects: Sequence[str]) -> None:
        """Read all subjects, so that errors come first, and make the class images that lack."""
        arguments = drawing_arguments(self._family, self._recipe)
        for subject in map(self.subject, subjects):
            self._judge.scorer(subject)
            if self._recipe.prior_loss_weight:
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
        return read_subject(self._setup.subjects_dir / name)

    def run(self, cell: Cell) -> tuple[Row, list[Image.Image]]:
        """Train, judge on the way, and in the end at all strengths; images are of the last."""
        started = time.perf_counter()
        subject = self.subject(cell.subject)
        pipe, models = self._fresh_pipe()
        line = Line(models)
        adapted = self._adapt(models, cell.method)
        with adapted.attached(pipe):
            row, images = self._run(pipe, adapted, line, cell, subject)
        return {**row, "seconds": time.perf_counter() - started}, images

    def _run(
        self, pipe: Any, adapted: Adapted, line: Line, cell: Cell, subject: Subject
    ) -> tuple[Row, list[Image.Image]]:
        looks: dict[int, Row] = {}
        trained, clock = 0.0, time.perf_counter()
        for step in self._train(pipe, adapted, cell, subject):
            trained += time.perf_counter() - clock
            if step in self._looks(cell):
                looks[step], _ = self._judge.judge(pipe, subject, cell.seed)
            clock = time.perf_counter()
        values, size = adapted.value_count(), adapted.file_bytes()
        adapted.merge()
        line.close()
        strengths: dict[str, Row] = {}
        for strength in STRENGTHS if adapted.parameters else STRENGTHS[-1:]:
            line.put(strength)
            adapted.strengthen(strength)
            strengths[str(strength)], images = self._judge.judge(pipe, subject, cell.seed)
        return {
            **strengths[str(STRENGTHS[-1])],
            "strengths": strengths,
            "parameters": values,
            "adapter_bytes": size,
            "train_seconds": trained,
            "looks": looks,
        }, images

    def train_few(self, method: str, subject: Subject, steps: int) -> None:
        """Train some steps, to see what that takes."""
        pipe, models = self._fresh_pipe()
        adapted = self._adapt(models, method)
        cell = Cell(method, find_method(method).learning_rates[0], subject.name, 0)
        with adapted.attached(pipe):
            for step in self._train(pipe, adapted, cell, subject):
                if step == steps:
                    break

    def _extractor(self) -> Extractor:
        if self._setup.extractors == "hub":
            return HubExtractor(self._setup.device)
        base = Path(self._setup.base)
        # Toybox's are beside it, others' in it.
        own, beside = base / "judges", base.parent / "judges"
        folder = own if own.is_dir() else beside
        return ToyboxExtractor(folder, base / "tokenizer", self._family.native_size)

    def _fresh_pipe(self) -> tuple[Any, Models]:
        """A pipeline with its own copies of the models that learn by default, and those, frozen."""
        names = (self._family.denoiser, *trained_text_encoders(self._family, None))
        models: Models = {
            name: copy.deepcopy(getattr(self._pipe, name)).requires_grad_(False) for name in names
        }
        return type(self._pipe).from_pipe(self._pipe, torch_dtype=None, **models), models

    def _adapt(self, models: Models, method: str) -> Adapted:
        torch.manual_seed(0)  # PEFT draws its starting values
        return find_method(method).adapt(models, self._recipe.steps)

    def _train(
        self, pipe: Any, adapted: Adapted, cell: Cell, subject: Subject
    ) -> Iterator[int] | tuple[()]:
        """The steps' numbers as they are done; none for the base."""
        if not adapted.parameters:
            return ()
        wanted = adapted.own is not None and adapted.own.wants_needs
        generic = self._generic_photos if wanted else ()
        others = OtherPhotos(self._class_photos(subject), generic)
        return train(pipe, adapted, subject, others, self._recipe, cell.learning_rate, cell.seed)

    def _looks(self, cell: Cell) -> set[int]:
        if cell.method not in CURVE_METHODS or cell.seed != 0:
            return set()
        return {round(share * self._recipe.steps) for share in _LOOKS}

    def _class_folder(self, subject: Subject) -> Path:
        return self._setup.folder / "class_images" / subject.class_name

    @functools.cached_property
    def _generic_photos(self) -> list[Photo]:
        """What the base draws of other things; drawn when first asked for."""
        photos = []
        for prompt in _GENERIC_PROMPTS:
            folder = self._setup.folder / "generic" / file_stem(prompt)
            generate_class_images(
                self._pipe,
                folder,
                prompt,
                _GENERIC_IMAGES,
                drawing_arguments(self._family, self._recipe),
                batch_size=_GENERIC_IMAGES,
                seed=0,
                show_progress=False,
            )
            photos += load_photos(folder, prompt)
        return photos

    def _class_photos(self, subject: Subject) -> list[Photo]:
        if not self._recipe.prior_loss_weight:
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
    CellStore(setup).write_with_images(cell, row, images)


def measure_peak_memory(setup: Setup, method: str) -> int:
    """Peak resident memory of a process that trains some steps, in bytes; a GPU's if on one."""
    path = setup.folder / "memory" / f"{file_stem(method)}.json"
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
