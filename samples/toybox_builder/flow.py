"""Command line: ``python -m samples.toybox_builder.flow --work DIR --stage STAGE``."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .flow_data import FlowExamples, encode_parts, learn_tokenizer
from .flow_export import UNDISTILLED, look
from .flow_model import FlowModel, Shape
from .flow_train import FlowTraining, Schedule, flow_loss
from .flow_world import FLOW_RECIPE, FLOW_SIZE, PART, draw_flow_pool, load_flow_pool
from .pool import Recipe
from .tokenizer import sequence_tokenizer
from .vae import Design, train_vae

FLOW_VAE = Design(
    size=FLOW_SIZE,
    widths=(16, 32, 64, 128),
    channels=16,
    crop_share=0.6,
    halved_share=0.2,
    batches=(16, 6),
    standard=True,
)
STAGES = ("pool", "vae", "latents", "train", "samples")
_VAE_PARTS = 6


@dataclass(frozen=True)
class Plan:
    """Everything that decides what comes out.

    Attributes:
        parts: of the pool.
        part: pictures in each.
        recipe: of the pictures.
        vae: the autoencoder.
        vae_minutes: its training, by the processor's clock on a CPU.
        shape: of the transformer and the text encoders.
        schedule: of their training.
        seed: of both trainings.
    """

    parts: int = 30
    part: int = PART
    recipe: Recipe = FLOW_RECIPE
    vae: Design = FLOW_VAE
    vae_minutes: float = 40.0
    shape: Shape = field(default_factory=Shape)
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=6000))
    seed: int = 21


def _model(work: Path, plan: Plan) -> FlowModel:
    torch.manual_seed(plan.seed)
    tokenizer = learn_tokenizer(work)
    return FlowModel(tokenizer, sequence_tokenizer(work / "tokenizer"), plan.shape)


def run_stage(
    stage: str, work: Path, plan: Plan, device: torch.device, threads: int, compiled: bool = False
) -> None:
    """Run a stage; what is finished is kept, interrupted training resumes."""
    if stage == "pool":
        draw_flow_pool(work, plan.parts, threads, plan.recipe, plan.part)
    elif stage == "vae":
        if not (work / "vae").exists():
            pool = load_flow_pool(work, _VAE_PARTS)
            clock = time.process_time if device.type == "cpu" else time.monotonic
            train_vae(pool, work, plan.vae_minutes, device, plan.seed, plan.vae, clock)
    elif stage == "latents":
        encode_parts(work, device)
    elif stage == "train":
        model = _model(work, plan).to(device)
        if compiled:
            model.transformer.compile_repeated_blocks()
        training = FlowTraining(model, work / "flow.pt", plan.schedule, plan.seed)
        training.run(FlowExamples.load(work, model), flow_loss, device)
    elif stage == "samples":
        model = _model(work, plan)
        training = FlowTraining(model, work / "flow.pt", plan.schedule, plan.seed)
        training.average.swap()
        look(model, work, UNDISTILLED).save(work / f"grid_{training.step:06d}.png")


def main() -> None:
    """Read the options and run the stage."""
    plan = Plan()
    parser = argparse.ArgumentParser(description="Build Toybox-Flow from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="folder for all intermediates")
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--parts", type=int, default=plan.parts, help="of 2000 pictures each")
    parser.add_argument(
        "--vae-minutes", type=float, default=plan.vae_minutes, help="by the processor's clock"
    )
    parser.add_argument("--steps", type=int, default=plan.schedule.steps)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    schedule = replace(plan.schedule, steps=options.steps)
    plan = replace(plan, parts=options.parts, vae_minutes=options.vae_minutes, schedule=schedule)
    device = torch.device(options.device)
    run_stage(options.stage, options.work, plan, device, options.threads, options.compile)


if __name__ == "__main__":
    main()
