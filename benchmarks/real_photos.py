"""The trainer's defaults on photographs: does it learn them, and what comes out?

    python -m benchmarks.real_photos FOLDER[=CLASS] … [--base FOLDER] [--quick]

Each folder holds photos of one subject of the class (default: the folder's name). The loss is
over all photos at fixed noise and timesteps, before and after. Pictures go to
`outputs/real_photos_SUBJECT.png`, which git ignores, for they show the photos: photos, the base,
and the trained model at the same seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.report import ROOT, Row, print_table, write_report
from benchmarks.runs import fixed_loss, generate
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.grid import labelled_grid
from svfit_diffusion.training.trainer import Trainer

_SCENES = ("", " on the beach", " in the snow", " in the jungle", " on a wooden floor")


@dataclass(frozen=True)
class RealSubject:
    """Photos of a subject of a known class."""

    folder: Path
    class_name: str

    @classmethod
    def parse(cls, text: str) -> RealSubject:
        """Read `FOLDER` or `FOLDER=CLASS`."""
        folder, _, class_name = text.partition("=")
        return cls(Path(folder), class_name or Path(folder).name)


def measure(subject: RealSubject, base: Path, quick: bool) -> tuple[Row, Image.Image]:
    """Train on a subject; the losses, and the picture."""
    prompt = f"a photo of sks {subject.class_name}"
    prompts = [prompt + scene for scene in _SCENES]
    with tempfile.TemporaryDirectory() as output:
        config = TrainingConfig(
            pretrained_model_name_or_path=str(base),
            instance_data_dir=str(subject.folder),
            instance_prompt=prompt,
            output_dir=output,
            seed=0,
            max_train_steps=3 if quick else None,
        )
        trainer = Trainer(config, show_progress=False)
        loss_before = fixed_loss(trainer)
        before = generate(trainer, prompts, 1, steps=20, guidance=2.0)
        start = time.perf_counter()
        records = list(trainer.steps())
        seconds = time.perf_counter() - start
        row: Row = {
            "subject": subject.folder.name,
            "photos": len(trainer.photo_sets[0].photos),
            "steps": trainer.step,
            "learning_rate": config.learning_rate,
            "trained_values": sum(p.numel() for p in trainer.sigma_parameters()),
            "loss_before": loss_before,
            "loss_after": fixed_loss(trainer),
            "sigma_drift": records[-1].sigma_drift,
            "seconds": seconds,
        }
        after = generate(trainer, prompts, 1, steps=20, guidance=2.0)
        side = trainer.resolution
        photos = [ImageOps.fit(photo.image, (side, side)) for photo in trainer.photo_sets[0].photos]
    picture = labelled_grid(
        [photos[: len(prompts)], before, after],
        [
            "photos",
            f"base, loss {row['loss_before']:.4f}",
            f"after {row['steps']} steps, loss {row['loss_after']:.4f}",
        ],
        [prompt, *(f"…{scene}" for scene in _SCENES[1:])],
    )
    return row, picture


def main() -> None:
    """Train on each subject, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subjects", nargs="+", type=RealSubject.parse, metavar="FOLDER[=CLASS]")
    parser.add_argument("--base", type=Path, default=ROOT / "samples" / "toybox")
    parser.add_argument("--quick", action="store_true", help="three steps: does it run at all?")
    options = parser.parse_args()
    name = "real_photos_quick" if options.quick else "real_photos"
    pictures = ROOT / "outputs"
    pictures.mkdir(exist_ok=True)
    rows = []
    for subject in options.subjects:
        row, picture = measure(subject, options.base, options.quick)
        picture.save(pictures / f"{name}_{subject.folder.name}.png")
        rows.append(row)
    print_table(rows, list(rows[0]))
    print(write_report(name, rows))


if __name__ == "__main__":
    main()
