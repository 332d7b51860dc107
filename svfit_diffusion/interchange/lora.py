"""Adapters as LoRA files that other programs read, checked by diffusers' own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.sources import AdapterSource
from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import Adapter, refuse_words
from svfit_diffusion.files.atomic import write_safetensors
from svfit_diffusion.interchange.based import adapter_of, based, refuse_existing
from svfit_diffusion.interchange.checking import check_reading
from svfit_diffusion.interchange.export import Export, check_dtype
from svfit_diffusion.interchange.factors import Factors, factors_of
from svfit_diffusion.interchange.header import header_of, network_header, peft_header
from svfit_diffusion.interchange.layouts import (
    Base,
    alpha_of,
    filled,
    kohya_tensors,
    marks,
    peft_tensors,
)
from svfit_diffusion.interchange.truncation import truncation

Layout = Literal["auto", "kohya", "peft"]

_UNREAD = ("SD3Transformer2DModel",)
"""Transformers whose kohya files diffusers drops without a word."""


@torch.no_grad()
def export_lora(
    pipe: Any,
    adapter: Adapter | AdapterSource,
    path: str | Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    format: Layout = "auto",
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    ignore_base_mismatch: bool = False,
) -> Export:
    """Write an adapter as a LoRA: of each layer the best change of a rank, or all of it.

    Before the file appears, diffusers' own loader reads it, and what it reads is compared with what
    was meant; but for Stable Diffusion 3 in kohya's form, which diffusers does not read.

    Args:
        pipe: a pipeline of the base model; it is as before afterwards.
        adapter: an adapter, or a file, a folder, a hub id or a state dict of one.
        path: the `.safetensors` file to write.
        rank: how many singular values of each layer to keep. Shifts are spread over all of them, so
            a small rank loses most: of `samples/adapters/blue_car` rank 64 of 192 leaves an error
            of 0.35, rank 179 one of 0.01. Ranks that differ by layer lose less at the same size:
            `reduce_adapter(adapter, budget=…)` first.
        error: keep within this share of the change's norm over all layers together, such as 0.01,
            by the smallest rank that does. If neither is given, the LoRA is exact.
        format: `"kohya"` or `"peft"` names; `"auto"` takes what most programs read: kohya's for
            UNets, PEFT's for transformers.
        dtype: of the tensors: float16, bfloat16 or float32.
        overwrite: replace a file that is there.
        ignore_base_mismatch: export although the adapter was trained on another base.

    Raises:
        InterchangeError: the adapter shifts nothing; the error cannot be reached by the rank; a
            layer has no name in that form; diffusers does not read the file back as it was meant;
            or a file is there.
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading the adapter.
        OSError: the file could not be written; nothing is left of it.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    check_dtype(dtype)
    if format not in ("auto", "kohya", "peft"):
        raise InterchangeError(f'format must be "auto", "kohya" or "peft", got {format!r}')
    adapter, base = adapter_of(adapter), Base.of(pipe)
    refuse_words(adapter, "export a LoRA")
    with based(models_of(pipe), adapter, ignore_base_mismatch) as layers:
        choice = truncation({name: layer.delta for name, layer in layers.items()}, rank, error)
        kept = {
            name: factors_of(layer.basis, layer.delta, choice.kept[name])
            for name, layer in layers.items()
            if choice.kept[name].numel()
        }
    is_kohya = format == "kohya" or (format == "auto" and base.is_unet)
    changes, tensors, header = (_kohya if is_kohya else _peft)(kept, base)
    is_read = not (is_kohya and base.kind in _UNREAD)

    def check(written: Path) -> None:
        if is_read:
            check_reading(pipe, written, changes, dtype)

    write_safetensors(
        path,
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        header_of(pipe, base.denoiser, adapter.metadata, path.stem, choice.error) | header,
        check,
    )
    return Export(path, path.stat().st_size, choice.rank, choice.error, choice.errors)


_Contents = tuple[dict[str, Factors], dict[str, Tensor], dict[str, str]]
"""The changes that a file holds, its tensors, and what its header says of its form."""


def _kohya(kept: dict[str, Factors], base: Base) -> _Contents:
    changes = filled(kept, base, marks(kept, base))
    parts = [name for group in base.groups(changes).values() for name in group]
    changes = filled(changes, base, parts)
    tensors = kohya_tensors(changes, base)
    rank = max(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_down.weight"))
    return changes, tensors, network_header(rank, alpha_of(rank))


def _peft(kept: dict[str, Factors], base: Base) -> _Contents:
    changes = filled(kept, base, marks(kept, base))
    ranks = {name: change.rank for name, change in changes.items()}
    return changes, peft_tensors(changes, base), peft_header(ranks)
