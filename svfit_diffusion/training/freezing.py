"""A pipeline's models as they are in training: frozen, in a precision, and in a mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from svfit_diffusion.families import Family

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What the base is cast to, by the name of a mixed precision."""


def freeze(
    family: Family, trained_encoders: Sequence[str], precision: str, checkpointing: bool
) -> None:
    """Freeze and cast the models of a family's pipeline, and have them recompute if wanted.

    Args:
        family: of the pipeline.
        trained_encoders: components whose shifts are trained beside the denoiser's.
        precision: `no`, `fp16` or `bf16`.
        checkpointing: whether they keep little for the backward pass and compute again.
    """
    if precision in PRECISIONS:
        family.pipe.to(PRECISIONS[precision])
    for part in family.pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    if checkpointing or family.needs_training_mode:
        family.model.train()
    if checkpointing:
        family.model.enable_gradient_checkpointing()
        for name in trained_encoders:
            encoder = getattr(family.pipe, name)
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()
