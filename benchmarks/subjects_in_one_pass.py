"""Several subjects in one pass against as many runs one after the other: time and memory.

    python -m benchmarks.subjects_in_one_pass           # Toybox, and SD 1.5's shape at 256 px
    python -m benchmarks.subjects_in_one_pass --device cuda --resolution 512

Time is that of a step of all subjects, by one pass and by their own trainers in turn, in rounds of
both. Memory is the most in use while a process of its own makes such steps, against one run whose
batch has as many rows.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.architectures import (
    bare_pipeline,
    clip_text_encoder,
    sd15_unet,
    toybox_pipeline,
)
from benchmarks.measuring import MALLOC_SETTINGS, interleaved, isolated, peak_bytes_of
from benchmarks.report import ROOT, Row, write_report
from benchmarks.speed_rows import timing_rows, value_rows
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.shared_pass import SharedPass
from svfit_diffusion.training.trainer import Trainer

TOYBOX, UNET, BOTH = "Toybox", "SD 1.5 UNet", "SD 1.5 UNet + text encoder"
ONE_AFTER_THE_OTHER, IN_ONE_PASS = "runs one after the other", "one pass"
SAME_ROWS = "one run with the same rows"
_MEMORY_STEPS = 2
_ENDLESS = 10**6
_FOLDERS = sorted(p for p in (ROOT / "samples" / "subjects").iterdir() if p.is_dir())


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", choices=(TOYBOX, UNET, BOTH), default=[TOYBOX, UNET])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--subjects", type=int, default=8, help="How many in one pass.")
    parser.add_argument("--batch", type=int, default=1, help="Photos of each subject in a step.")
    parser.add_argument("--resolution", type=int, default=256, help="Pixels, of SD 1.5's shape.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_memory", action="store_true", help="Measure time alone.")
    given = parser.parse_args()
    rows: list[Row] = []
    for base in given.bases:
        job = (base, given.subjects, given.batch, given.resolution, given.device)
        rounds = 5 * given.rounds if base == TOYBOX else given.rounds
        rows += isolated(step_rows, *job, rounds)
        if not given.no_memory:
            rows += memory_rows(*job)
        for row in rows:
            print(f"{row['what']}: {row['method']} {row['value']:.3g} {row['unit']}", end=", ")
            print(f"{row['ratio']:.3f} of {row['ratio_to']}", flush=True)
    name = "subjects_in_one_pass" + ("" if given.device == "cpu" else f"_{given.device}")
    print(write_report(name, rows))


def step_rows(
    base: str, subjects: int, batch: int, resolution: int, device: str, rounds: int
) -> list[Row]:
    """Seconds of a step of all subjects, both ways."""
    with tempfile.TemporaryDirectory() as folder:
        configs = _configs(base, subjects, batch, resolution, device, Path(folder))
        shared = _shared_pass(base, configs)
        alone = Trainer(configs["0"], pipe=_pipeline(base), show_progress=False)
        steps = alone.steps()

        def in_turn() -> None:
            for _ in range(subjects):
                next(steps)

        calls: dict[str, Callable[[], object]] = {
            ONE_AFTER_THE_OTHER: in_turn,
            IN_ONE_PASS: shared.step,
        }
        seconds = interleaved(calls, rounds, device)
    what = f"step of {subjects} subjects, {base}"
    setting = _setting(base, batch, configs["0"])
    return timing_rows(what, seconds, ONE_AFTER_THE_OTHER, setting=setting)


def memory_rows(base: str, subjects: int, batch: int, resolution: int, device: str) -> list[Row]:
    """Peak memory of steps, each way in a process of its own."""
    job = (base, subjects, batch, resolution, device)
    with patch.dict(os.environ, MALLOC_SETTINGS):
        peaks = {
            SAME_ROWS: isolated(_peak_bytes, *job, False) / 1e6,
            IN_ONE_PASS: isolated(_peak_bytes, *job, True) / 1e6,
        }
    return value_rows(f"peak memory of {subjects} subjects, {base}", peaks, "MB", SAME_ROWS)


def _peak_bytes(
    base: str, subjects: int, batch: int, resolution: int, device: str, several: bool
) -> int:
    """Most memory in use while steps are made, weights and basis included."""
    with tempfile.TemporaryDirectory() as folder:
        rows = batch if several else subjects * batch
        configs = _configs(base, subjects, rows, resolution, device, Path(folder))
        step: Callable[[], object]
        if several:
            step = _shared_pass(base, configs).step
        else:
            trainer = Trainer(configs["0"], pipe=_pipeline(base), show_progress=False)
            step = trainer.steps().__next__
        return peak_bytes_of(lambda: [step() for _ in range(_MEMORY_STEPS)], device)


def _shared_pass(base: str, configs: dict[str, TrainingConfig]) -> SharedPass:
    shared = SharedPass(configs["0"], pipe=_pipeline(base), show_progress=False)
    for name, config in configs.items():
        shared.join(name, config)
    return shared


def _pipeline(base: str) -> Any:
    if base == TOYBOX:
        return toybox_pipeline()
    return bare_pipeline(sd15_unet(), clip_text_encoder(12 if base == BOTH else 1))


def _configs(
    base: str, subjects: int, batch: int, resolution: int, device: str, folder: Path
) -> dict[str, TrainingConfig]:
    """Settings of each subject, by number."""
    return {
        str(number): TrainingConfig(
            pretrained_model_name_or_path=base,
            instance_data_dir=str(_FOLDERS[number % len(_FOLDERS)]),
            instance_prompt="a photo of sks thing",
            output_dir=str(folder / str(number)),
            resolution=None if base == TOYBOX else resolution,
            train_text_encoder=base != UNET,
            train_batch_size=batch,
            max_train_steps=_ENDLESS,
            mixed_precision="bf16" if device == "cuda" else "no",
            seed=number,
        )
        for number in range(subjects)
    }


def _setting(base: str, batch: int, config: TrainingConfig) -> str:
    pixels = "its own size" if config.resolution is None else f"{config.resolution} px"
    threads = f", {torch.get_num_threads()} threads" if config.mixed_precision == "no" else ""
    return f"batch {batch} of each subject, {pixels}, {config.mixed_precision}{threads}"


if __name__ == "__main__":
    main()
