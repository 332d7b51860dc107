"""Pictures on their way, noise and all."""

from __future__ import annotations

import inspect

import torch
from PIL import Image
from torch import Tensor

from svfit_diffusion.families import Family

_LATENT_SIDE = 32
"""Larger latents are scaled down to this before they are decoded."""


@torch.no_grad()
def previews(family: Family, latents: Tensor, size: tuple[int, int]) -> tuple[Image.Image, ...]:
    """Small pictures of latents as a pipeline has them between two steps.

    Args:
        family: of the pipeline.
        latents: `(n, c, h, w)`, or packed into tokens.
        size: height and width of the pictures in pixels.

    Returns:
        n of them; none where the tokens are packed in an order of the family's own.
    """
    pipe = family.pipe
    if latents.dim() == 3:
        if not hasattr(pipe, "_unpack_latents"):
            return ()
        named = {"height": size[0], "width": size[1], "vae_scale_factor": pipe.vae_scale_factor}
        accepted = inspect.signature(pipe._unpack_latents).parameters
        latents = pipe._unpack_latents(
            latents, **{name: value for name, value in named.items() if name in accepted}
        )
    is_video = latents.dim() == 5  # of one frame
    raw = _unscaled(family, _reduced(latents.squeeze(2) if is_video else latents))
    decoded = pipe.vae.decode(raw.unsqueeze(2) if is_video else raw).sample
    return tuple(pipe.image_processor.postprocess(decoded.squeeze(2) if is_video else decoded))


def _reduced(latents: Tensor) -> Tensor:
    longest = max(latents.shape[-2:])
    if longest <= _LATENT_SIDE:
        return latents
    scale = _LATENT_SIDE / longest
    return torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")


def _unscaled(family: Family, latents: Tensor) -> Tensor:
    """Undo `Family.scale_latents`, a gain and an offset for each channel."""
    offset = family.scale_latents(torch.zeros_like(latents))
    gain = family.scale_latents(torch.ones_like(latents)) - offset
    return (latents - offset) / gain
