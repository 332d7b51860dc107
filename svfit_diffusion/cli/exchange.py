"""`svfit export` and `svfit import`: adapters for other programs, and from what others made."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svfit_diffusion.cli.options import (
    Base,
    Dtype,
    IgnoreMismatch,
    NeededBase,
    Overwrite,
    Revision,
    Variant,
    adapter_file,
    load_pipeline,
    read,
    refuse_existing,
    save,
    weighted,
)
from svfit_diffusion.errors import ConfigError

if TYPE_CHECKING:
    from svfit_diffusion.files.adapter import Adapter
    from svfit_diffusion.interchange import Export

_SHOWN = 5


class Kind(str, Enum):
    """What other programs read."""

    lora = "lora"
    dense = "dense"


class Names(str, Enum):
    """Forms of a LoRA's names."""

    auto = "auto"
    kohya = "kohya"
    peft = "peft"


def export(
    adapters: Annotated[
        list[str],
        typer.Argument(help="An adapter, or adapter:strength such as rex:0.8; several are merged."),
    ],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    kind: Annotated[
        Kind, typer.Option(help="A LoRA, or dense changes for ComfyUI, Forge and InvokeAI.")
    ] = Kind.lora,
    base: Base = "",
    rank: Annotated[int | None, typer.Option(min=1, help="A LoRA of this rank.")] = None,
    error: Annotated[
        float | None,
        typer.Option(help="The smallest LoRA within this share of the change, such as 0.01."),
    ] = None,
    format: Annotated[
        Names, typer.Option(help="Names in a LoRA; auto: those that most programs read.")
    ] = Names.auto,
    dtype: Annotated[Dtype, typer.Option(help="Type of the numbers.")] = Dtype.float16,
    revision: Revision = None,
    variant: Variant = None,
    ignore_base_mismatch: IgnoreMismatch = False,
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter for other programs; without --rank and --error it is exact."""
    from svfit_diffusion.interchange import export_dense, export_lora

    refuse_existing(output, overwrite)
    adapter = _one(adapters)
    pipe = load_pipeline(base, revision, variant, [adapter])
    if kind is Kind.lora:
        written = export_lora(
            pipe,
            adapter,
            output,
            rank=rank,
            error=error,
            format=format.value,
            dtype=dtype.torch,
            overwrite=overwrite,
            ignore_base_mismatch=ignore_base_mismatch,
        )
    elif rank or error or format is not Names.auto:
        raise ConfigError("--rank, --error and --format are for a LoRA; dense changes are exact")
    else:
        written = export_dense(
            pipe,
            adapter,
            output,
            dtype=dtype.torch,
            overwrite=overwrite,
            ignore_base_mismatch=ignore_base_mismatch,
        )
    _report(written)


def import_(
    lora: Annotated[Path | None, typer.Argument(help="A LoRA of any form for the base.")] = None,
    *,
    base: NeededBase,
    output: Annotated[
        Path, typer.Option(help="The adapter to write: a .safetensors file, or a folder.")
    ],
    from_model: Annotated[
        str,
        typer.Option(
            "--from-model",
            "--from_model",
            help="Instead of a LoRA: a fine-tuned model, whose difference from the base is taken.",
        ),
    ] = "",
    revision: Revision = None,
    variant: Variant = None,
    overwrite: Overwrite = False,
) -> None:
    """Make an adapter of what singular values can say of a LoRA or a fine-tuned model."""
    from svfit_diffusion.interchange import import_difference, import_lora

    if bool(lora) == bool(from_model):
        raise ConfigError("give a LoRA file, or --from-model with a fine-tuned model: one of them")
    refuse_existing(adapter_file(output), overwrite)
    pipe = load_pipeline(base, revision, variant, [])
    if lora:
        found = import_lora(pipe, lora)
    else:
        found = import_difference(pipe, load_pipeline(from_model, None, variant, []))
    path = save(found.adapter, output, overwrite)
    for name, share in sorted(found.shares.items(), key=lambda item: item[1]):
        print(f"{share:7.2%}  {name}")
    for name in found.left_out:
        print(f"left out, as singular values do not shift it: {name}")
    print(f"{path}: {path.stat().st_size:,} bytes; it says {found.share:.2%} of the change's norm")


def _one(adapters: list[str]) -> Adapter:
    """One adapter, or several merged."""
    from svfit_diffusion.interchange import merge_adapters

    parts = [weighted(text) for text in adapters]
    if len(parts) == 1 and parts[0][1] == 1:
        return read(parts[0][0])
    return merge_adapters(parts)


def _report(written: Export) -> None:
    worst = sorted(written.errors.items(), key=lambda item: -item[1])[:_SHOWN]
    for name, error in worst:
        if error:
            print(f"error {error:.3g} in {name}")
    print(
        f"{written.path}: {written.size:,} bytes, rank {written.rank}, error {written.error:.3g} "
        f"of the change"
    )
