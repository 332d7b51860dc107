"""Adapters as files of dense changes, half the size of an exact LoRA of square layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.sources import AdapterSource
from svfit_diffusion.files.adapter import Adapter, refuse_words
from svfit_diffusion.files.atomic import write_safetensors
from svfit_diffusion.interchange.based import adapter_of, based, refuse_existing
from svfit_diffusion.interchange.export import Export, check_dtype
from svfit_diffusion.interchange.header import header_of
from svfit_diffusion.interchange.layouts import Base, dense_tensors
from svfit_diffusion.interchange.truncation import truncation
from svfit_diffusion.spectrum.shift import shift_matrix


@torch.no_grad()
def export_dense(
    pipe: Any,
    adapter: Adapter | AdapterSource,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    ignore_base_mismatch: bool = False,
) -> Export:
    """Write an adapter's whole change, `<kohya name>.diff` in the shape of each layer's weight.

    ComfyUI, InvokeAI, A1111 and Forge read such files; diffusers does not.

    Args:
        pipe: a pipeline of the base model; it is as before afterwards.
        adapter: an adapter, or a file, a folder, a hub id or a state dict of one.
        path: the `.safetensors` file to write.
        dtype: of the tensors: float16, bfloat16 or float32.
        overwrite: replace a file that is there.
        ignore_base_mismatch: export although the adapter was trained on another base.

    Raises:
        InterchangeError: the adapter shifts nothing, a layer has no kohya name, or a file is there.
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading the adapter.
        OSError: the file could not be written; nothing is left of it.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    check_dtype(dtype)
    adapter, base = adapter_of(adapter), Base.of(pipe)
    refuse_words(adapter, "export changes of weights")
    cpu = torch.device("cpu")
    with based(models_of(pipe), adapter, ignore_base_mismatch) as layers:
        whole = truncation({name: layer.delta for name, layer in layers.items()}, None, None)
        changes = {
            name: shift_matrix(layer.basis.to(cpu), layer.delta.to(cpu)).to(dtype)
            for name, layer in layers.items()
            if whole.kept[name].numel()
        }
    header = header_of(pipe, base.denoiser, adapter.metadata, path.stem, 0.0)
    write_safetensors(path, dense_tensors(changes, base), header)
    return Export(path, path.stat().st_size, whole.rank, whole.error, whole.errors)
