"""Command line: ``python -m samples.toybox_builder.flow --work DIR --stage STAGE``."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline

from .evaluate import write_metrics
from .flow_data import FlowExamples, learn_tokenizer
from .flow_export import (
    FLOW_SAMPLING,
    UNDISTILLED,
    assemble_flow,
    look,
    save_flow,
    take_weights,
)
from .flow_guidance import GuidedFlow
from .flow_latents import TEACHER, encode_parts
from .flow_model import FlowModel, Shape
from .flow_subjects import FLOW_LOOK, FLOW_SUBJECTS
from .flow_train import flow_loss, load_learned, train_flow
from .flow_vae import train_flow_vae
from .flow_world import (
    FLOW_RECIPE,
    PART,
    draw_flow_pool,
    draw_judged_pool,
    load_flow_pool,
)
from .judges import fit_judges
from .pool import Recipe
from .subjects import build_subjects
from .tokenizer import sequence_tokenizer
from .training import Schedule

STAGES = ("pool", "vae", "latents", "train", "guide", "export", "judges", "evaluate", "subjects")
"""In the order in which they need each other; the stage `samples` can follow any after `train`."""

_VAE_PARTS = 16
_FLOW, _GUIDED = "flow.pt", "guided.pt"
_SCHEDULES = {"vae": "vae", "train": "schedule", "guide": "guiding"}
_EXPORTED, _JUDGES = "toybox_flow", "judges"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out.

    Attributes:
        parts: of the pool.
        part: pictures in each.
        recipe: of the pictures.
        teacher: folder of the autoencoder that our own starts from.
        vae: schedule of the training of our own autoencoder.
        shape: of the transformer and the text encoders.
        schedule: of their training.
        guiding: schedule of what follows, in which guidance is learned too.
        judged: pictures that the judges are fitted on.
        seed: of all trainings.
        start: folder of a pipeline whose weights `train` begins with, rather than random ones; the
            tokenizer has to be its own.
    """

    parts: int = 30
    part: int = PART
    recipe: Recipe = FLOW_RECIPE
    teacher: Path = TEACHER
    vae: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1400,
            muon_rate=0.008,
            adam_rate=1e-3,
            decay_start=0.5,
            average_decay=0.99,
        )
    )
    shape: Shape = field(default_factory=Shape)
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2400, batch_size=512))
    guiding: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1500, batch_size=512, muon_rate=0.01, adam_rate=7e-4, decay_start=0.3
        )
    )
    judged: int = 9000
    seed: int = 21
    start: Path | None = None


def new_model(work: Path, plan: Plan) -> FlowModel:
    """An untrained model, the same every time."""
    torch.manual_seed(plan.seed)
    tokenizer = learn_tokenizer(work)
    return FlowModel(tokenizer, sequence_tokenizer(work / "tokenizer"), plan.shape)


def _learned(work: Path, plan: Plan) -> tuple[FluxPipeline, int, dict[str, Any]]:
    """The pipeline as trained so far, the steps that took, and the settings to draw with."""
    model = new_model(work, plan)
    steps, settings = load_learned(model, work / _FLOW), UNDISTILLED
    if (work / _GUIDED).exists():
        steps += load_learned(model, work / _GUIDED)
        settings = FLOW_SAMPLING
    for module in model.modules.values():
        module.eval()
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    return assemble_flow(model, vae), steps, settings


def _train(work: Path, plan: Plan, device: torch.device) -> None:
    model = new_model(work, plan)
    if plan.start is not None:
        take_weights(model, plan.start)
    model.to(device)
    examples = FlowExamples.load(work, model)
    train_flow(model, examples, flow_loss, work / _FLOW, plan.schedule, plan.seed, device)


def _guide(work: Path, plan: Plan, device: torch.device) -> None:
    teacher, model = (new_model(work, plan).to(device) for _ in range(2))
    for each in (teacher, model):
        load_learned(each, work / _FLOW)
    examples, objective = FlowExamples.load(work, model), GuidedFlow(teacher)
    train_flow(model, examples, objective, work / _GUIDED, plan.guiding, plan.seed, device)


def run_stage(stage: str, work: Path, plan: Plan, device: torch.device, threads: int) -> None:
    """Run a stage; what is finished is kept, interrupted training resumes."""
    if stage == "pool":
        draw_flow_pool(work, plan.parts, threads, plan.recipe, plan.part)
    elif stage == "vae":
        train_flow_vae(work, plan.vae, plan.seed, device, plan.teacher, _VAE_PARTS)
    elif stage == "latents":
        encode_parts(work, device)
    elif stage == "train":
        _train(work, plan, device)
    elif stage == "guide":
        _guide(work, plan, device)
    elif stage == "samples":
        pipeline, steps, settings = _learned(work, plan)
        look(pipeline, settings).save(work / f"grid_{steps:06d}.png")
    elif stage == "export":
        save_flow(_learned(work, plan)[0], work / _EXPORTED)
    elif stage == "judges" and not (work / _JUDGES / "judges.json").exists():
        judged = draw_judged_pool(work, threads, replace(plan.recipe, varied=0.0), plan.judged)
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        judges = fit_judges(judged, vae, learn_tokenizer(work), plan.seed)
        judges.save(work / _JUDGES)
    elif stage == "evaluate":
        settings = FLOW_SAMPLING if (work / _GUIDED).exists() else UNDISTILLED
        write_metrics(load_flow_pool(work, 1), work / _EXPORTED, work / _JUDGES, settings)
    elif stage == "subjects":
        build_subjects(work / "npm", work / "flow_subjects", FLOW_SUBJECTS, FLOW_LOOK)


def main() -> None:
    """Read the options and run the stage."""
    plan = Plan()
    parser = argparse.ArgumentParser(description="Build Toybox-Flow from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="folder for all intermediates")
    parser.add_argument("--stage", choices=(*STAGES, "samples", "all"), required=True)
    parser.add_argument("--parts", type=int, default=plan.parts, help="of 2000 pictures each")
    parser.add_argument("--steps", type=int, help="of the training that the stage is, in all")
    parser.add_argument("--start", type=Path, help="pipeline whose weights `train` begins with")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # of GPUs; CPUs have no such thing
    plan = replace(plan, parts=options.parts, start=options.start)
    if options.steps is not None:
        if options.stage not in _SCHEDULES:
            parser.error(f"--steps is for one of the stages {', '.join(_SCHEDULES)}")
        name = _SCHEDULES[options.stage]
        plan = replace(plan, **{name: replace(getattr(plan, name), steps=options.steps)})
    device = torch.device(options.device)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        run_stage(stage, options.work, plan, device, options.threads)


if __name__ == "__main__":
    main()
