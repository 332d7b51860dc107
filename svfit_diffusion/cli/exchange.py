"""`svfit export` and `svfit import`: adapters for other programs, and from what others made."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    base_of,
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
    folder = "folder"
    checkpoint = "checkpoint"


class Names(str, Enum):
    """Forms of a LoRA's names."""

    auto = "auto"
    kohya = "kohya"
    peft = "peft"


def export(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="An adapter, or adapter:strength such as blue_car:0.7; several are merged."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The .safetensors file, or the folder, to write.")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="A LoRA; dense changes for ComfyUI, Forge and InvokeAI; the whole model with the "
            "adapters in its weights, as a diffusers folder or, of Stable Diffusion 1, 2 and XL, "
            "as one checkpoint file."
        ),
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
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of the numbers; default: float16, in a whole model the base's own."),
    ] = None,
    revision: Revision = None,
    variant: Variant = None,
    ignore_base_mismatch: IgnoreMismatch = False,
    overwrite: Overwrite = False,
) -> None:
    """Write adapters for other programs; without --rank and --error it is exact."""
    from svfit_diffusion import interchange
    from svfit_diffusion.training.base import load_base, load_whole_base

    if kind is not Kind.lora and (rank or error or format is not Names.auto):
        raise ConfigError(f"--rank, --error and --format are for a LoRA; a {kind.value} is exact")
    refuse_existing(output, overwrite)
    parts = [(read(source), strength) for source, strength in map(weighted, adapters)]
    source = base_of(base, revision, variant, [adapter for adapter, _ in parts])
    common: dict[str, Any] = {
        "overwrite": overwrite,
        "ignore_base_mismatch": ignore_base_mismatch,
    }
    whole = dtype.torch if dtype else None
    change = (dtype or Dtype.float16).torch
    if kind is Kind.lora:
        wanted: dict[str, Any] = {"rank": rank, "error": error, "format": format.value}
        pipe = load_base(source)
        written = interchange.export_lora(
            pipe, _one(parts), output, dtype=change, **wanted, **common
        )
    elif kind is Kind.dense:
        pipe = load_base(source)
        written = interchange.export_dense(pipe, _one(parts), output, dtype=change, **common)
    elif kind is Kind.folder:
        pipe = load_whole_base(source)
        written = interchange.export_pipeline(pipe, parts, output, dtype=whole, **common)
    else:
        pipe = load_whole_base(source)
        written = interchange.export_checkpoint(pipe, parts, output, dtype=whole, **common)
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
    from svfit_diffusion.training.base import load_base

    if bool(lora) == bool(from_model):
        raise ConfigError("give a LoRA file, or --from-model with a fine-tuned model: one of them")
    refuse_existing(adapter_file(output), overwrite)
    pipe = load_base(base_of(base, revision, variant))
    if lora:
        found = import_lora(pipe, lora)
    else:
        found = import_difference(pipe, load_base(base_of(from_model, None, variant)))
    path = save(found.adapter, output, overwrite)
    for name, share in sorted(found.shares.items(), key=lambda item: item[1]):
        print(f"{share:7.2%}  {name}")
    for name in found.left_out:
        print(f"left out, as singular values do not shift it: {name}")
    print(f"{path}: {path.stat().st_size:,} bytes; it says {found.share:.2%} of the change's norm")


def _one(parts: list[tuple[Adapter, float]]) -> Adapter:
    """One adapter, or several merged."""
    from svfit_diffusion.interchange import merge_adapters

    return parts[0][0] if len(parts) == 1 and parts[0][1] == 1 else merge_adapters(parts)


def _report(written: Export) -> None:
    worst = sorted(written.errors.items(), key=lambda item: -item[1])[:_SHOWN]
    for name, error in worst:
        if error:
            print(f"error {error:.3g} in {name}")
    print(
        f"{written.path}: {written.size:,} bytes, rank {written.rank}, error {written.error:.3g} "
        f"of the change"
    )
