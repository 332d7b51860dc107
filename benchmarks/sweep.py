"""Learning rate, steps and text encoder: the sweep behind the trainer's defaults.

    python -m benchmarks.sweep [--subjects pug blue_car] [--learning_rates 0.003 0.01 …]
        [--steps 100 200 400] [--text_encoder no yes] [--base FOLDER] [--name NAME] [--quick]
        [--training '{"target": ["all"]}']

Every subject, learning rate and text encoder choice is one training run of the last of the steps,
with prior preservation, looked at on its way after each of them. Runs found in the results file
are skipped; those of another base model or other settings are dropped from it. Rows of kind
"base" and "ceiling" score the untrained base and true pictures through its autoencoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.report import CACHE, RESULTS, ROOT, Row, print_table, read_report, write_report
from benchmarks.runs import fixed_loss, generate
from benchmarks.scoring import Eye, Scores, SubjectScorer, through_vae
from svfit_diffusion.config import TrainingConfig
from svfit_diffusion.data import load_photos
from svfit_diffusion.grid import labelled_grid
from svfit_diffusion.training import Trainer

_FIGURES = (
    *(field.name for field in dataclasses.fields(Scores)),
    "loss_before",
    "loss",
    "sigma_drift",
    "seconds",
)
_LEARNT = {"subject_fidelity": "likeness to the true subject", "identity": "read as the subject"}
_FOLLOWING = ("scene_accuracy", "prompted scene read")


@dataclass(frozen=True)
class Settings:
    """What all runs of a sweep share; rows measured under others do not compare.

    Attributes:
        base: digest of the base model.
        scenes: number of scenes prompted.
        rounds: images per prompt.
        inference_steps: of generated images, class images included.
        guidance: of generated images, class images included.
        batch: photos per training step, and as many class images.
        class_images: number of class images.
        probe_images: pictures that the scene probe is fitted on.
        seed: of training.
        training: training settings other than the trainer's defaults.
    """

    base: str
    scenes: int = 8
    rounds: int = 2
    inference_steps: int = 20
    guidance: float = 2.0
    batch: int = 4
    class_images: int = 100
    probe_images: int = 2000
    seed: int = 0
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training run of the sweep."""

    subject: str
    learning_rate: float
    train_text_encoder: bool
    total_steps: int

    def has(self, row: Row) -> bool:
        """Whether the row is of this run."""
        return row["kind"] == "trained" and all(
            row[name] == value for name, value in asdict(self).items()
        )

    def label(self) -> str:
        """For pictures."""
        encoder = ", text encoder too" if self.train_text_encoder else ""
        return f"learning rate {self.learning_rate:g}{encoder}"


class Sweep:
    """Runs what is missing of a sweep, and draws what there is.

    Args:
        name: of the results.
        base: folder of the base pipeline.
        subjects: folder of the subjects' folders.
        work: folder of the art archives.
        settings: of all runs.
    """

    def __init__(
        self, name: str, base: Path, subjects: Path, work: Path, settings: Settings
    ) -> None:
        self.name = name
        self._base, self._subjects, self._work = base, subjects, work
        self._settings = settings
        self._cache = CACHE / settings.base
        self._images = self._cache / name
        self._images.mkdir(parents=True, exist_ok=True)
        self.rows = self._known_rows()
        self._eye: Eye | None = None
        self._scorers: dict[str, SubjectScorer] = {}

    def run(self, run: Run, steps: Sequence[int]) -> None:
        """Train, and look after each of `steps`; nothing to do if all that is known."""
        known = {row["step"] for row in self.rows if run.has(row)}
        if known.issuperset(steps):
            return
        self.rows = [row for row in self.rows if not run.has(row)]
        start = time.perf_counter()
        scorer = self._scorer(run.subject)
        trainer = Trainer(self._config(run), show_progress=False)
        if not any(r["subject"] == run.subject and r["kind"] == "base" for r in self.rows):
            self._measure_unlearnt(run.subject, trainer, scorer)
        loss_before = fixed_loss(trainer)
        for record in trainer.steps():
            if record.step not in steps:
                continue
            images = self._generate(trainer, scorer)
            row = {
                "kind": "trained",
                **asdict(run),
                "step": record.step,
                **asdict(scorer.score(images)),
                "loss_before": loss_before,
                "loss": fixed_loss(trainer),
                "sigma_drift": record.sigma_drift,
                "seconds": time.perf_counter() - start,
            }
            self._keep(row, images)
        self._write()

    def draw(self, runs: Sequence[Run], steps: Sequence[int]) -> None:
        """`NAME.png`: learning rates × steps; `NAME_curves.png`: what was learned."""
        _draw_curves(self.rows, runs, steps).savefig(RESULTS / f"{self.name}_curves.png", dpi=120)
        rows = [row for row in self.rows if row["subject"] == runs[0].subject]
        base, ceiling = (next(r for r in rows if r["kind"] == kind) for kind in ("base", "ceiling"))
        shown = [run for run in runs if run.subject == runs[0].subject]
        grid = [
            [
                base,
                *(next(r for r in rows if run.has(r) and r["step"] == s) for s in steps),
                ceiling,
            ]
            for run in shown
        ]
        if not all(self._image_path(row).exists() for line in grid for row in line):
            print(f"images are no longer in {self._images}: {self.name}.png is not drawn anew")
            return
        labelled_grid(
            [[self._first_image(row) for row in line] for line in grid],
            [run.label() for run in shown],
            ["base", *(f"{step} steps" for step in steps), "true subject"],
            tile=128,
        ).save(RESULTS / f"{self.name}.png")

    def _known_rows(self) -> list[Row]:
        report = read_report(self.name)
        if report.get("settings") == asdict(self._settings):
            return list(report["rows"])
        if report:
            print(f"{self.name}.json is of another base or other settings: starting anew")
        return []

    def _scorer(self, subject: str) -> SubjectScorer:
        if subject not in self._scorers:
            self._eye = self._eye or Eye(self._work, self._settings.probe_images)
            photos = [p.image for p in load_photos(self._subjects / subject, "unused")]
            self._scorers[subject] = SubjectScorer(
                subject, self._eye, self._work, photos, self._settings.scenes
            )
        return self._scorers[subject]

    def _config(self, run: Run) -> TrainingConfig:
        settings = self._settings
        folder = self._subjects / run.subject
        subject = json.loads((folder / "subject.json").read_text(encoding="utf-8"))
        config = TrainingConfig(
            pretrained_model_name_or_path=str(self._base),
            instance_data_dir=str(folder),
            instance_prompt=subject["instance_prompt"],
            class_prompt=subject["class_prompt"],
            with_prior_preservation=True,
            class_data_dir=str(self._cache / "class_images" / subject["class_name"]),
            num_class_images=settings.class_images,
            sample_batch_size=20,
            num_inference_steps=settings.inference_steps,
            guidance_scale=settings.guidance,
            output_dir=str(self._cache / "runs"),
            train_batch_size=settings.batch,
            learning_rate=run.learning_rate,
            train_text_encoder=run.train_text_encoder,
            max_train_steps=run.total_steps,
            seed=settings.seed,
        )
        return dataclasses.replace(config, **settings.training)

    def _generate(self, trainer: Trainer, scorer: SubjectScorer) -> list[Image.Image]:
        settings = self._settings
        return generate(
            trainer,
            scorer.prompts,
            settings.rounds,
            steps=settings.inference_steps,
            guidance=settings.guidance,
        )

    def _measure_unlearnt(self, subject: str, trainer: Trainer, scorer: SubjectScorer) -> None:
        """What the base makes of the prompts, and the best that its autoencoder allows."""
        base = self._generate(trainer, scorer)
        with trainer.generating() as pipe:
            ceiling = through_vae(pipe, scorer.true_images(self._settings.rounds))
        for kind, images in (("base", base), ("ceiling", ceiling)):
            self._keep({"kind": kind, "subject": subject, **asdict(scorer.score(images))}, images)

    def _keep(self, row: Row, images: Sequence[Image.Image]) -> None:
        self.rows.append(row)
        sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
        for index, image in enumerate(images):
            sheet.paste(image, (index * image.width, 0))
        sheet.save(self._image_path(row))
        figures = {name: row[name] for name in _FIGURES if row.get(name) is not None}
        print(
            *(str(row[k]) for k in ("subject", "kind") if k in row),
            *(f"{k} {row[k]:g}" for k in ("learning_rate", "step") if k in row),
            "with text encoder" if row.get("train_text_encoder") else "",
            ", ".join(f"{name} {value:.3g}" for name, value in figures.items()),
            flush=True,
        )

    def _image_path(self, row: Row) -> Path:
        parts = ("subject", "kind", "learning_rate", "train_text_encoder", "total_steps", "step")
        return self._images / f"{'_'.join(str(row[part]) for part in parts if part in row)}.png"

    def _first_image(self, row: Row) -> Image.Image:
        with Image.open(self._image_path(row)) as sheet:
            return sheet.convert("RGB").crop((0, 0, sheet.height, sheet.height))

    def _write(self) -> None:
        write_report(self.name, self.rows, settings=asdict(self._settings))


def base_digest(folder: Path) -> str:
    """A name for a base pipeline: a digest of its weights and of its schedule."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("scheduler_config.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _draw_curves(rows: Sequence[Row], runs: Sequence[Run], steps: Sequence[int]) -> Any:
    """What was learned against prompt following, a line per learning rate over the steps."""
    choices = sorted({run.train_text_encoder for run in runs})
    subjects = sorted({run.subject for run in runs})
    figure, panels = plt.subplots(
        len(_LEARNT),
        len(choices),
        figsize=(5.5 * len(choices), 4.2 * len(_LEARNT)),
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for line, (figure_name, label) in zip(panels, _LEARNT.items(), strict=True):
        base, ceiling = (
            _point([r for r in rows if r["subject"] in subjects and r["kind"] == kind], figure_name)
            for kind in ("base", "ceiling")
        )
        line[0].set_ylabel(f"{label} (true pictures: {ceiling[1]:.2f})")
        for panel, choice in zip(line, choices, strict=True):
            panel.grid(alpha=0.3)
            panel.plot(*base, "k*", ms=11, label="base")
            same = [run for run in runs if run.train_text_encoder == choice]
            for rate in sorted({run.learning_rate for run in same}):
                of_rate = [
                    r for r in rows for run in same if run.learning_rate == rate and run.has(r)
                ]
                points = [
                    _point([r for r in of_rate if r["step"] == s], figure_name) for s in steps
                ]
                panel.plot(*zip(*points, strict=True), ".-", label=f"learning rate {rate:g}")
                for step, point in zip(steps, points, strict=True):
                    panel.annotate(f" {step}", point, fontsize=7)
    for top, bottom, choice in zip(panels[0], panels[-1], choices, strict=True):
        top.set_title("UNet and text encoder" if choice else "UNet")
        bottom.set_xlabel(f"{_FOLLOWING[1]} (true pictures: {ceiling[0]:.2f})")
    panels[0][0].legend()
    figure.suptitle(f"Mean over {', '.join(subjects)}; numbers are steps")
    figure.tight_layout()
    return figure


def _point(rows: Sequence[Row], figure_name: str) -> tuple[float, float]:
    """Mean prompt following, and mean of a figure."""
    x, y = (sum(row[key] for row in rows) / len(rows) for key in (_FOLLOWING[0], figure_name))
    return x, y


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    """All runs asked for, a subject at a time."""
    choices = itertools.product(options.subjects, options.text_encoder, options.learning_rates)
    for subject, encoder, rate in choices:
        yield Run(subject, rate, encoder == "yes", max(options.steps))


def main() -> None:
    """Run what is missing, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subjects", nargs="+", default=["pug", "blue_car"])
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 200, 400])
    parser.add_argument("--text_encoder", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--base", type=Path, default=ROOT / "samples" / "toybox")
    parser.add_argument("--subjects_dir", type=Path, default=ROOT / "samples" / "subjects")
    parser.add_argument("--work", type=Path, default=CACHE, help="folder of the art in npm/")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="images per prompt")
    parser.add_argument("--name", default="sweep", help="of the results")
    parser.add_argument("--quick", action="store_true", help="does it run at all? (sweep_quick)")
    parser.add_argument(
        "--training", type=json.loads, default={}, help='more settings, as {"target": ["all"]}'
    )
    options = parser.parse_args()
    settings = Settings(base_digest(options.base), rounds=options.rounds, training=options.training)
    if options.quick:
        settings = dataclasses.replace(
            settings, scenes=2, inference_steps=3, class_images=4, probe_images=300
        )
        options.name, options.steps = f"{options.name}_quick", [2, 4]
        options.subjects, options.learning_rates = options.subjects[:1], [0.03]
    sweep = Sweep(options.name, options.base, options.subjects_dir, options.work, settings)
    runs = list(_runs(options))
    for run in runs:
        sweep.run(run, options.steps)
    sweep.draw(runs, options.steps)
    print_table(
        sweep.rows,
        ["subject", "kind", "train_text_encoder", "learning_rate", "step", *_FIGURES],
    )


if __name__ == "__main__":
    main()
