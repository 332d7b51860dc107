"""`svfit plan`: what training takes, from a base model's configuration alone."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from svfit_diffusion.cli.options import AsJson, Revision

if TYPE_CHECKING:
    from svfit_diffusion.planning import Plan, PlannedStep


class Precision(str, Enum):
    """Of the frozen base."""

    no = "no"
    fp16 = "fp16"
    bf16 = "bf16"


class Quantization(str, Enum):
    """Of the denoiser."""

    nf4 = "nf4"
    int8 = "int8"
    torchao_int8 = "torchao_int8"
    torchao_float8 = "torchao_float8"
    fp8 = "fp8"


_PRECISE = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_ON_A_CPU = (
    "On a CPU less: vectors of all but small weights are read from their files while they are used."
)
_NOT_COUNTED = (
    "Not counted: what kernels need inside, what the allocator cannot use, the driver's context."
)


def plan(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="Base model: a folder or an id on huggingface.co; no weights."
        ),
    ],
    rank: Annotated[
        str | None,
        typer.Option(
            help="Singular values to train per weight, or a share of the energy; default: as the "
            "trainer does."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Layers: attention (default), all, a layer name; several times."),
    ] = None,
    train_text_encoder: Annotated[
        bool | None,
        typer.Option(
            "--train_text_encoder/--no_train_text_encoder",
            help="Train the CLIP text encoders along; default: as the trainer does.",
        ),
    ] = None,
    resolution: Annotated[
        list[int] | None,
        typer.Option(
            "--resolution",
            min=1,
            help="Pixels of a side of the images; several times. Default: the base's.",
        ),
    ] = None,
    train_batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--train_batch_size", min=1, help="Photos in a step; several times. Default: 4."
        ),
    ] = None,
    mixed_precision: Annotated[
        Precision, typer.Option("--mixed_precision", help="Precision of the frozen base.")
    ] = Precision.no,
    quantization: Annotated[
        Quantization | None,
        typer.Option("--quantization", help="Of the denoiser, as the trainer quantises it."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient_checkpointing", help="Less memory for a slower step.")
    ] = False,
    group_offload: Annotated[
        bool,
        typer.Option("--group_offload", help="The denoiser's blocks wait in the host's memory."),
    ] = False,
    budget: Annotated[int | None, typer.Option(min=1, help="Singular values to keep.")] = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what training would take, against LoRA: values, bytes, time and memory."""
    import diffusers
    import transformers

    from svfit_diffusion.planning import make_plan
    from svfit_diffusion.training.config import TrainingConfig

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    config = TrainingConfig(
        pretrained_model_name_or_path=base,
        revision=revision,
        rank=rank,
        target=target or ["attention"],
        train_text_encoder=train_text_encoder,
        mixed_precision=mixed_precision.value,
        quantization=quantization.value if quantization else None,
        gradient_checkpointing=gradient_checkpointing,
        group_offload=group_offload,
        budget=budget,
    )
    made = make_plan(config, resolution or (), train_batch_size or ())
    print(json.dumps(made.facts(), indent=2) if as_json else "\n".join(_told(made)))


def _told(plan: Plan) -> list[str]:
    """A plan as lines to be read."""
    most = "at most " if plan.at_most else ""
    loras = {f"LoRA r={rank}": size for rank, size in plan.lora.items()}
    kept = f", {plan.budget:,} kept" if plan.budget else ""
    about = "about " if plan.budget else most
    return [
        f"{plan.pipeline} of {plan.base}",
        "  " + ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.weights.items()),
        "",
        *_table(
            [
                ["", f"SVFit, rank {plan.rank}", *loras],
                [
                    f"values in {_layers(plan)}",
                    f"{most}{plan.values:,}{kept}",
                    *(f"{size.values:,}" for size in loras.values()),
                ],
                [
                    "file",
                    about + _bytes(plan.adapter_bytes),
                    *(_bytes(size.file_bytes) for size in loras.values()),
                ],
            ]
        ),
        "",
        f"singular vectors, once per base: {most}{_bytes(plan.basis_bytes)} in the cache, {most}"
        f"{_duration(plan.first_load_seconds)} on {plan.cores} cores of this machine (estimated)",
        f"weights of all models: {_bytes(plan.whole_bytes)} in the host's memory once loaded, and "
        f"on the device while it draws (with --offload {_bytes(plan.largest_bytes)} at most)",
        f"weights of the text encoders, on the device while prompts are encoded: "
        f"{_bytes(plan.encoders_bytes)}",
        "",
        f"memory of a training step in GB, {most and 'SVFit at most, '}{_PRECISE[plan.precision]}"
        + _quantised(plan)
        + (", gradient checkpointing" if plan.gradient_checkpointing else "")
        + (", group offload" if plan.group_offload else ""),
        *_table(_memory(plan.steps)),
        *(
            f"{step.resolution} px, batch {step.batch_size}: memory not known for this family "
            f"({step.unknown})"
            for step in plan.steps
            if step.unknown
        ),
        *([_ON_A_CPU] if _reads_in_turn(plan.steps) else []),
        _NOT_COUNTED,
    ]


def _quantised(plan: Plan) -> str:
    return f", the denoiser quantised ({plan.quantization})" if plan.quantization else ""


def _layers(plan: Plan) -> str:
    return ", ".join(f"{count} layers of {name}" for name, count in plan.layers.items())


def _memory(steps: list[PlannedStep]) -> list[list[str]]:
    """A row for each step and method, and its parts."""
    head = ["", "pixels", "batch", "total", "weights", "vectors", "optimizer", "saved", "working"]
    rows = [
        [
            name,
            f"{step.resolution}",
            f"{step.batch_size}",
            *(
                f"{part / 1e9:.3f}"
                for part in (
                    memory.total,
                    memory.weights,
                    memory.basis,
                    memory.state,
                    memory.saved,
                    memory.working,
                )
            ),
        ]
        for step in steps
        for name, memory in step.memory.items()
    ]
    return [head, *rows] if rows else []


def _reads_in_turn(steps: list[PlannedStep]) -> bool:
    return any(memory.basis_in_turn for step in steps for memory in step.memory.values())


def _table(rows: list[list[str]]) -> list[str]:
    """Rows as lines, in columns, of which the first holds texts and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _bytes(count: int) -> str:
    unit, size = next(((u, s) for u, s in _UNITS if count >= s), ("bytes", 1))
    return f"{count / size:,.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes > 1 else f"{max(round(seconds), 1)} seconds"
