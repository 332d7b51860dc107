"""How fast SVFit trains, loads, switches and generates, against peers measured in the same run.

    python -m benchmarks.speed [--device cpu|cuda] [--rows NAME …] [--rounds N]

Models have real architectures and random weights. Each group of rows runs in a process of its own;
one that fails, as where memory runs out, leaves rows that say why. A whole run writes
`results/speed.json`, on a GPU `results/speed_cuda.json`; a run of some groups writes a file named
after them. What a GPU alone can show stays in the CPU's table as not measured.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from unittest.mock import patch

import torch

from benchmarks import speed_adapters as adapters
from benchmarks import speed_flux as flux
from benchmarks import speed_inference as inference
from benchmarks import speed_parallel as parallel
from benchmarks import speed_training as training
from benchmarks.measuring import isolated
from benchmarks.report import Row, print_table, write_report
from benchmarks.speed_methods import FLOOR, LORA, SVFIT, SVFIT_99
from benchmarks.speed_rows import COLUMNS, Target, judged, make_row, unmeasured

DEVICES = ("cpu", "cuda")


class Measure(Protocol):
    """Makes the rows of a group; sent to another process, so no closure."""

    def __call__(self, device: str, rounds: int) -> list[Row]: ...


@dataclass(frozen=True)
class Group:
    """Rows that are measured together.

    Attributes:
        measure: makes them.
        devices: where they mean something.
        by_default: whether a run without `--rows` makes them; those that take long are asked for.
    """

    measure: Measure
    devices: tuple[str, ...] = DEVICES
    by_default: bool = True


GROUPS: dict[str, Group] = {
    "train_step": Group(functools.partial(training.sd15_step, text_encoder=False), ("cpu",)),
    "train_step_text_encoder": Group(
        functools.partial(training.sd15_step, text_encoder=True), ("cpu",)
    ),
    "train_step_toybox": Group(training.toybox_step, ("cpu",)),
    "train_step_full": Group(training.full_step, ("cpu",), by_default=False),
    "train_step_gpu": Group(functools.partial(training.sd15_step, text_encoder=False), ("cuda",)),
    "memory": Group(functools.partial(training.sd15_memory, text_encoder=False)),
    "memory_text_encoder": Group(functools.partial(training.sd15_memory, text_encoder=True)),
    "memory_full": Group(training.full_memory, by_default=False),
    "memory_sdxl": Group(training.sdxl_memory, by_default=False),
    "train_step_flux": Group(flux.flux_step, by_default=False),
    "memory_flux": Group(flux.flux_memory, by_default=False),
    "image": Group(inference.denoiser_call),
    "image_toybox": Group(inference.toybox_image),
    "load": Group(adapters.load),
    "load_sdxl": Group(adapters.load_sdxl, by_default=False),
    "switch": Group(adapters.switch),
    "mixed": Group(inference.mixed_batch),
    "mixed_512": Group(inference.large_mixed_batch, ("cpu",), by_default=False),
    "resident": Group(adapters.resident, ("cpu",)),
    "data_parallel": Group(parallel.data_parallel, ("cpu",)),
}


def _both_devices(
    group: str, what: str, method: str, limit: float, ratio_to: str | None = None
) -> tuple[Target, ...]:
    return tuple(Target(group, device, what, method, limit, ratio_to) for device in DEVICES)


TARGETS: tuple[Target, ...] = (
    *(
        Target(group, "cpu", training.step_of(what), method, limit, LORA)
        for group, what in (
            ("train_step", training.UNET),
            ("train_step_text_encoder", training.BOTH),
            ("train_step_toybox", training.TOYBOX),
        )
        for method, limit in ((SVFIT, 1.10), (SVFIT_99, 1.05))
    ),
    Target("train_step_gpu", "cuda", training.step_of(training.UNET), SVFIT, 0.90, LORA),
    Target("train_step_gpu", "cuda", training.step_of(training.UNET), SVFIT, 1.10, FLOOR),
    *_both_devices("memory", training.memory_of(training.UNET), SVFIT, 1.05, LORA),
    *_both_devices("memory_text_encoder", training.memory_of(training.BOTH), SVFIT, 1.05, LORA),
    *_both_devices("memory_sdxl", training.memory_of(training.SDXL), SVFIT, 1.05, LORA),
    *_both_devices("image", inference.FORWARD, SVFIT, 1.01, inference.BASE),
    *_both_devices("image_toybox", inference.TOYBOX_IMAGE, SVFIT, 1.01, inference.BASE),
    Target("load", "cpu", adapters.cold_load_of("SD 1.5 UNet"), SVFIT, 12),
    Target("load", "cuda", adapters.cold_load_of("SD 1.5 UNet"), SVFIT, 4),
    *_both_devices("load", adapters.warm_load_of("SD 1.5 UNet"), SVFIT, 1),
    *(
        Target("switch", device, f"{action}, {what}", SVFIT, limit)
        for device, limit in (("cpu", 1), ("cuda", 0.03))
        for what in ("SD 1.5 UNet", "Toybox")
        for action in (adapters.SWITCH, adapters.STRENGTH)
    ),
    *_both_devices("mixed", inference.MIXED, SVFIT, 1.3, inference.BASE),
    Target("mixed_512", "cpu", inference.MIXED_LARGE, SVFIT, 1.3, inference.BASE),
    Target("resident", "cpu", adapters.resident_memory_of(adapters.MANY), SVFIT, 1000),
    *(
        Target(
            "resident",
            "cpu",
            adapters.among(adapters.MANY, action),
            SVFIT,
            1.1,
            adapters.among(adapters.FEW, action),
        )
        for action in (adapters.SWITCH, adapters.STRENGTH, adapters.LOOK_UP)
    ),
    Target("data_parallel", "cpu", parallel.TRAVELS, SVFIT, 400_000),
)
"""What this project promises. A ratio of ≈ 1 is held to 1.1."""


def measure(name: str, device: str, rounds: int) -> list[Row]:
    """The rows of a group, with targets; where it fails, rows without a value that say why."""
    targets = [t for t in TARGETS if (t.group, t.device) == (name, device)]
    rows: list[Row] = []
    reason = "the group made no such row"
    try:
        rows = isolated(GROUPS[name].measure, device, rounds)
    except Exception as error:  # whatever it is, the other groups are still worth measuring
        reason = f"{type(error).__name__}: {error}"
        print(f"{name} failed: {reason}", flush=True)
        if not targets:
            rows = [make_row(name, SVFIT, None, "", reason=reason)]
    return [row | {"group": name, "device": device} for row in judged(rows, targets, reason)]


def left_out(names: Sequence[str], groups: Sequence[str], device: str) -> list[Row]:
    """A row without a value for each target of `names` that `groups` on `device` do not measure."""
    rows = []
    for target in TARGETS:
        if target.group not in names:
            continue
        if target.device != device:
            reason = f"not measured: needs --device {target.device}"
        elif target.group not in groups:
            reason = f"not measured: takes long, needs --rows {target.group}"
        else:
            continue
        rows.append(unmeasured(target, reason) | {"group": target.group, "device": target.device})
    return rows


def report_name(device: str, names: Sequence[str]) -> str:
    """Of the file that a run writes; one of some groups does not replace that of a whole run."""
    parts = ["speed"] + ["cuda"] * (device == "cuda")
    return "_".join(parts + list(names))


def main() -> None:
    """Measure group by group; print and write what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=GROUPS,
        default=[],
        metavar="NAME",
        help=f"groups of rows; default: all that do not take long, of {', '.join(GROUPS)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of what is timed")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here")
    names = options.rows or list(GROUPS)
    groups = [
        name
        for name in names
        if options.device in GROUPS[name].devices and (options.rows or GROUPS[name].by_default)
    ]
    if not groups:
        parser.error(f"none of these groups is measured on {options.device}")
    rows: list[Row] = []
    missing = left_out(names, groups, options.device)
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, SVFIT_CACHE=cache):
        for name in groups:
            began = time.perf_counter()
            measured = measure(name, options.device, options.rounds)
            print(f"\n{name}: {time.perf_counter() - began:.0f} s", flush=True)
            print_table(measured, COLUMNS)
            # After each, so that an interrupted run leaves what it measured.
            rows += measured
            name_of_report = report_name(options.device, options.rows)
            report = write_report(name_of_report, rows + missing, rounds=options.rounds)
    print()
    print_table(rows + missing, ("device", *COLUMNS))
    print(report)


if __name__ == "__main__":
    main()
