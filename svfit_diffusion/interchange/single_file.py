"""Stable Diffusion with adapters in its weights, as the single files that most programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from svfit_diffusion.files.atomic import write_safetensors
from svfit_diffusion.interchange.based import refuse_existing
from svfit_diffusion.interchange.combining import metadata_of_all
from svfit_diffusion.interchange.comparing import digests, refuse_differences
from svfit_diffusion.interchange.export import Export
from svfit_diffusion.interchange.header import checkpoint_header
from svfit_diffusion.interchange.merging import Weighted, merging
from svfit_diffusion.interchange.original_layout import parts_of
from svfit_diffusion.interchange.slots import is_sdxl


@torch.no_grad()
def export_checkpoint(
    pipe: Any,
    adapters: Weighted,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    ignore_base_mismatch: bool = False,
) -> Export:
    """Write Stable Diffusion 1.x, 2.x or XL with adapters merged into its weights as one file.

    In the layout that these models were published in: UNet, autoencoder and text encoders, which
    ComfyUI, A1111, Forge, InvokeAI and diffusers' `from_single_file` read as any other checkpoint.
    Before the file appears, diffusers' own converters read it back, and what they read is compared
    with what was meant, bit by bit.

    Not in such files are tokenizers, the scheduler and a safety checker. That SDXL predicts v is
    marked as ComfyUI and Forge look for it; of the others, which programs tell by the model's
    weights or a setting of yours, the header alone speaks.

    Args:
        pipe: a pipeline of the base model; it is as before afterwards. Adapters that it has set do
            not count.
        adapters: as files, folders, hub ids or in memory, with their strengths: a mapping or pairs.
        path: the `.safetensors` file to write.
        dtype: of the weights: float16, bfloat16 or float32; as the pipeline has them if not given.
        overwrite: replace a file that is there.
        ignore_base_mismatch: merge although an adapter was trained on another base.

    Raises:
        InterchangeError: nothing would be merged; the family has no such layout, or the pipeline
            holds LoRAs or other weights that it has no place for; diffusers does not read the file
            back as it was meant; or a file is there.
        ConfigError: a strength is not a finite number.
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading an adapter.
        OSError: the file could not be written; nothing is left of it.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    parts = parts_of(pipe)
    with merging(pipe, adapters, dtype, ignore_base_mismatch) as merge:
        models = {part.component: merge.tensors(part.component) for part in parts}
    tensors = _marks(pipe) | {
        part.prefix + name: tensor
        for part in parts
        for name, tensor in part.to_original(models[part.component]).items()
    }

    def check(written: Path) -> None:
        checkpoint = load_file(written)
        refuse_differences(
            {part.component: digests(models[part.component]) for part in parts},
            {part.component: digests(part.read(checkpoint)) for part in parts},
        )

    header = checkpoint_header(pipe, pipe.unet, metadata_of_all(merge.adapters, {}), path.stem)
    write_safetensors(path, tensors, header, check)
    shifts = merge.shifts
    return Export(path, path.stat().st_size, shifts.rank, shifts.error, shifts.errors)


def _marks(pipe: Any) -> dict[str, Tensor]:
    """Tensors without values by which ComfyUI and Forge know an SDXL that predicts v."""
    config = pipe.scheduler.config
    if not is_sdxl(pipe.unet) or config.get("prediction_type") != "v_prediction":
        return {}
    names = ["v_pred", *["ztsnr"] * bool(config.get("rescale_betas_zero_snr"))]
    return {name: torch.empty(0) for name in names}
