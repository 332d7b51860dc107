"""Command line: ``python -m samples.toybox_builder --work DIR [--stage STAGE]``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from .evaluate import write_metrics
from .export import publish
from .pool import draw_pool, load_pool, save_pool
from .subjects import build_subjects
from .unet import train_unet
from .vae import encode_pool, train_vae

STAGES = ("pool", "vae", "latents", "unet", "export", "evaluate", "subjects")
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
    parser.add_argument("--images", type=int, default=40_000, help="pictures in the pool")
    parser.add_argument("--vae-minutes", type=float, default=8.0)
    parser.add_argument("--unet-minutes", type=float, default=75.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--export-minutes", type=float, default=5.0)
    options = parser.parse_args()
    stages = STAGES if options.stage == "all" else (options.stage,)
    device = torch.device(options.device)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if "pool" in stages and not (work / "pool" / "text.json").exists():
        pool = draw_pool(work, options.images, options.seed, os.cpu_count() or 1)
        save_pool(pool, work / "pool")
    if "vae" in stages and not (work / "vae").exists():
        train_vae(load_pool(work / "pool"), work, options.vae_minutes, device, options.seed)
    if "latents" in stages and not (work / "latents.pt").exists():
        encode_pool(load_pool(work / "pool"), work, device)
    if "unet" in stages:
        train_unet(
            load_pool(work / "pool"),
            work,
            options.unet_minutes,
            device,
            options.seed,
            options.batch_size,
            options.export_minutes,
        )
    if "export" in stages:
        publish(work / "latest", options.output / "toybox")
    if "evaluate" in stages:
        write_metrics(load_pool(work / "pool"), options.output / "toybox", options.seed)
    if "subjects" in stages:
        build_subjects(work / "npm", options.output / "subjects")


if __name__ == "__main__":
    main()
