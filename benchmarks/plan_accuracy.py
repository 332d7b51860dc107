"""The memory of a training step: what `svfit plan` says, and what steps take.

    python -m benchmarks.plan_accuracy
    python -m benchmarks.plan_accuracy --base Toybox
    python -m benchmarks.plan_accuracy --device cuda

A plan knows configurations alone. What it is compared with are steps as the trainer makes them, on
real tensors (random weights but for Toybox), each method in a process of its own: the most memory
in use in two steps, beyond what is in use once the base is loaded and such a step has been made on
a copy that is gone again, so that what libraries load and keep does not count. On a CPU
that is resident memory, on a GPU what PyTorch's allocator has given out. The weights, counted, are
added for `ratio`; `ratio_beyond_weights` goes without them. Written as
`results/plan_accuracy.json`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import transformers

from benchmarks.adapting import Adapt, Adapted, Models, lora, nothing, svfit
from benchmarks.architectures import TOYBOX, sharing_weights, toybox_pipeline
from benchmarks.measuring import (
    MALLOC_SETTINGS,
    bytes_in_use,
    isolated,
    peak_bytes_of,
)
from benchmarks.plan_cases import CASES, Case
from benchmarks.plans import write_configurations
from benchmarks.report import ROOT, Row, read_report, write_report
from benchmarks.speed_training import precision
from svfit_diffusion.families import Family, family_of
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.planning import Plan, StepMemory, make_plan
from svfit_diffusion.training import checks
from svfit_diffusion.training.batches import draw_batches
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.freezing import freeze
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.photo_set import PhotoSet, photo_sets
from svfit_diffusion.training.photos import load_photos

BATCH_SIZES = (1, 2)
TOLERANCE = 0.1
_PHOTOS = ROOT / "samples" / "subjects" / "pug"
_PROMPT = "a photo of sks dog"
_STEPS = 2
"""The optimizer's moments come with the first."""
_MALLOC = dict.fromkeys(MALLOC_SETTINGS, "4096")
"""So that the C library gives back small tensors too: Toybox's are, and fragments of its heap would
be a tenth of what is measured.
"""


@dataclass(frozen=True)
class Method:
    """What is trained.

    Attributes:
        adapt: makes frozen models trainable.
        planned_as: the name in plans.
        rank: of the plan that it is in.
    """

    adapt: Adapt
    planned_as: str
    rank: str = "1.0"


METHODS = {
    "frozen": Method(nothing, "frozen"),
    "SVFit": Method(svfit(), "SVFit"),
    "SVFit, rank 64": Method(svfit(64), "SVFit", "64"),
    "LoRA, r=8": Method(lora(8), "LoRA r=8"),
    "LoRA, r=16": Method(lora(16), "LoRA r=16"),
}


@dataclass(frozen=True)
class Measured:
    """What steps take.

    Attributes:
        values: that were trained.
        weights: bytes of the models on the device.
        beyond: most bytes in use beyond them.
        kept: bytes that libraries had loaded and kept before, among them code.
    """

    values: int
    weights: int
    beyond: int
    kept: int


def make_row(planned: StepMemory, total: int, measured: Measured) -> Row:
    """A plan's bytes, in `total` on the device that was measured, those measured, and the ratios of
    the one to the other.
    """
    beyond = total - planned.weights
    ratio = total / (measured.weights + measured.beyond)
    return {
        "planned": vars(planned) | {"total": total},
        "measured": {"weights": measured.weights, "beyond": measured.beyond, "kept": measured.kept},
        "trained_values": measured.values,
        "ratio": ratio,
        "ratio_beyond_weights": beyond / measured.beyond,
        "holds": abs(ratio - 1) <= TOLERANCE,
    }


def rows_of(base: str, device: str) -> Iterator[Row]:
    """A row for each batch size and method.

    Raises:
        RuntimeError: plan and run do not train the same.
    """
    case = CASES[base]
    plans = {rank: _plan(case, rank, device) for rank in {m.rank for m in METHODS.values()}}
    with patch.dict(os.environ, _MALLOC):
        isolated(_compute_bases, base, device)
        for name, method in METHODS.items():
            plan = plans[method.rank]
            for step in plan.steps:
                if step.unknown:
                    raise RuntimeError(f"{base}: {step.unknown}")
                planned = step.memory[method.planned_as]
                measured = isolated(measure, base, name, step.batch_size, device)
                wanted = _values(plan, method), planned.weights
                if (measured.values, measured.weights) != wanted:
                    raise RuntimeError(f"{base}, {name}: {measured} is not of {wanted}")
                about = {"base": base, "method": name, "batch_size": step.batch_size}
                settings = case.settings | {"resolution": case.resolution}
                total = planned.total_on_cpu if device == "cpu" else planned.total
                yield about | settings | make_row(planned, total, measured)


def _plan(case: Case, rank: str, device: str) -> Plan:
    with tempfile.TemporaryDirectory() as name:
        folder = TOYBOX if case.build is toybox_pipeline else Path(name)
        if folder is not TOYBOX:
            write_configurations(case.build, folder)
        config = _config(case, device, str(folder), rank)
        return make_plan(config, (case.resolution,), BATCH_SIZES, show_progress=False)


def _config(case: Case, device: str, base: str = "unused", rank: str = "1.0") -> TrainingConfig:
    return TrainingConfig(
        base,
        str(_PHOTOS),
        _PROMPT,
        rank=rank,
        mixed_precision="bf16" if device == "cuda" else None,
        **case.settings,
    )


def _compute_bases(base: str, device: str) -> None:
    """All triplets, so that no process that is measured computes any."""
    case = CASES[base]
    family = family_of(case.build().to(device))
    trained = checks.trained_text_encoders(family, _config(case, device).train_text_encoder)
    models = {name: getattr(family.pipe, name) for name in (family.denoiser, *trained)}
    METHODS["SVFit"].adapt(models, 1)


def _values(plan: Plan, method: Method) -> int:
    """Numbers that a plan says a method trains."""
    loras = {f"LoRA r={rank}": size.values for rank, size in plan.lora.items()}
    return {"frozen": 0, "SVFit": plan.values, **loras}[method.planned_as]


def measure(base: str, method: str, batch_size: int, device: str) -> Measured:
    """Memory of steps; in a process of its own, or what was there before counts."""
    case = CASES[base]
    config = _config(case, device)
    family = family_of(case.build())
    pipe = family.pipe
    trained = checks.trained_text_encoders(family, config.train_text_encoder)
    pipe.to(device)
    freeze(family, trained, config.mixed_precision or "no", config.gradient_checkpointing)
    photos = _encoded(family, case.resolution, encodes=bool(trained))
    on_device = [family.denoiser, *(family.encoders if trained else ())]
    for name in {"vae", *family.encoders}.difference(on_device):
        getattr(pipe, name).to("cpu")
    models = {name: getattr(pipe, name) for name in on_device}
    loaded = bytes_in_use(device)

    def run(steps: int) -> tuple[int, int]:
        copies = sharing_weights(models)
        _place(pipe, copies)
        learning = {name: copies[name] for name in (family.denoiser, *trained)}
        adapted = METHODS[method].adapt(learning, steps)
        train = partial(_train, family, adapted, photos, batch_size, steps, device)
        peak = peak_bytes_of(train, device)
        _place(pipe, models)
        return adapted.value_count(), peak

    run(1)
    before = bytes_in_use(device)
    values, peak = run(_STEPS)
    tensors = (t for model in models.values() for t in (*model.parameters(), *model.buffers()))
    return Measured(values, sum(t.nbytes for t in tensors), peak - before, before - loaded)


def _place(pipe: Any, models: Models) -> None:
    for name, model in models.items():
        setattr(pipe, name, model)


def _encoded(family: Family, resolution: int, *, encodes: bool) -> PhotoSet:
    """Photos as training keeps them; their prompts too, unless each step encodes them."""
    (photos,) = photo_sets(
        family,
        [load_photos(_PHOTOS, _PROMPT)],
        resolution,
        aspect_buckets=False,
        center_crop=True,
        random_flip=False,
        proportion_empty_prompts=0.0,
        scratch=Scratch(),
    )
    photos.cache_latents()
    if not encodes:
        photos.cache_conditions()
    return photos


def _train(
    family: Family,
    adapted: Adapted,
    photos: PhotoSet,
    batch_size: int,
    steps: int,
    device: str,
) -> None:
    """Make steps of training; where nothing is trained, gradients flow to the latents."""
    noise = TrainingConfig("unused", str(_PHOTOS), _PROMPT).noise
    objective = Objective(family, family.noise_process(noise), [photos], seed=0)
    optimizer = torch.optim.AdamW(adapted.parameters) if adapted.parameters else None
    for step in range(steps):
        positions = list(range(step * batch_size, (step + 1) * batch_size))
        with precision(device):
            (batch,) = draw_batches(objective.shares(positions))
            batch.latents.requires_grad_(optimizer is None)
            loss = objective.batch_losses(batch).mean()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    """Make all plans, measure, and write both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--base", choices=CASES, action="append", help="these alone; other rows stay as they are"
    )
    arguments = parser.parse_args()
    device, bases = arguments.device, arguments.base or list(CASES)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    name = "plan_accuracy" if device == "cpu" else f"plan_accuracy_{device}"
    rows: list[Row] = [r for r in read_report(name).get("rows", []) if r["base"] not in bases]
    for base in bases:
        for row in rows_of(base, device):
            rows.append(row)
            print(" ".join(f"{row[column]}" for column in COLUMNS), flush=True)
        print(write_report(name, rows, device=device))


COLUMNS = ("base", "batch_size", "method", "ratio", "ratio_beyond_weights")


if __name__ == "__main__":
    main()
