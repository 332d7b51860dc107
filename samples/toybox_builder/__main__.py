"""Command line: ``python -m samples.toybox_builder --work DIR [--stage STAGE]``."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from .concepts import CONCEPTS, CORE_CONCEPTS, Concept
from .evaluate import write_metrics
from .export import publish
from .judges import fit_judges
from .pool import draw_pool, load_pool, save_pool
from .subjects import build_subjects
from .unet import train_unet
from .vae import encode_pool, train_vae

STAGES = ("pool", "vae", "latents", "unet", "export", "judges", "evaluate", "subjects")


@dataclass(frozen=True)
class Course:
    """A part of the training: what is learned, from how many pictures, for how long."""

    name: str
    concepts: tuple[Concept, ...]
    images: int
    minutes: float


COURSES = (
    Course("core", CORE_CONCEPTS, 40_000, 69.0),
    Course("all", CONCEPTS, 52_000, 78.0),
)
"""Few things first: shapes come sooner, and the many that follow build on them."""

JUDGES_IMAGES, JUDGES_SEED = 9_000, 11
SAMPLES = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the stages asked for; finished ones are kept, interrupted training resumes."""
    parser = argparse.ArgumentParser(
        prog="samples.toybox_builder",
        description="Build the Toybox base model and its subjects from nothing.",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for all intermediates")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--output", type=Path, default=SAMPLES, help="folder for the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vae-minutes", type=float, default=8.0)
    parser.add_argument(
        "--time-scale", type=float, default=1.0, help="factor on the minutes of both courses"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--export-minutes", type=float, default=5.0)
    options = parser.parse_args()
    stages = STAGES if options.stage == "all" else (options.stage,)
    device = torch.device(options.device)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    for number, course in enumerate(COURSES):
        folder = work / course.name
        if "pool" in stages and not (folder / "pool" / "text.json").exists():
            pool = draw_pool(
                work, course.concepts, course.images, options.seed + number, os.cpu_count() or 1
            )
            save_pool(pool, folder / "pool")
        if "vae" in stages and not (work / "vae").exists():
            train_vae(load_pool(folder / "pool"), work, options.vae_minutes, device, options.seed)
        if "latents" in stages and not (folder / "latents.pt").exists():
            encode_pool(load_pool(folder / "pool"), folder, device)
        if "unet" in stages:
            train_unet(
                load_pool(folder / "pool"),
                folder,
                course.minutes * options.time_scale,
                device,
                options.seed,
                options.batch_size,
                options.export_minutes,
                start=work / COURSES[number - 1].name / "latest" if number else None,
            )
    finished = work / COURSES[-1].name
    if "export" in stages:
        publish(finished / "latest", options.output / "toybox")
    if "judges" in stages and not (options.output / "judges" / "judges.json").exists():
        # Compositions of their own, which the base was not trained on.
        pool = draw_pool(work, CONCEPTS, JUDGES_IMAGES, JUDGES_SEED, os.cpu_count() or 1)
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        tokenizer = CLIPTokenizer.from_pretrained(finished / "tokenizer")
        fit_judges(pool, vae, tokenizer, options.seed).save(options.output / "judges")
    if "evaluate" in stages:
        pool = load_pool(finished / "pool")
        write_metrics(pool, options.output / "toybox", options.output / "judges")
    if "subjects" in stages:
        build_subjects(work / "npm", options.output / "subjects")


if __name__ == "__main__":
    main()
