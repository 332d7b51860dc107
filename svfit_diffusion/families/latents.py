"""From pixels to raw latents, whatever the autoencoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """For a while, the autoencoder computes in float32: several overflow in float16."""
    dtype = vae.dtype
    try:
        nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns of any change of dtype
        yield
    finally:
        nn.Module.to(vae, dtype)  # exact: the numbers came from there


@torch.no_grad()
def raw_moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of `pixels`, float32, on the CPU.

    The deviation is zero where the autoencoder is deterministic.
    """
    with in_float32(vae):
        output = vae.encode(pixels.to(vae.device, torch.float32))
    if hasattr(output, "latent_dist"):
        return output.latent_dist.mean.cpu(), output.latent_dist.std.cpu()
    latent = output.latent.cpu()
    return latent, torch.zeros_like(latent)


def per_channel(values: Any, like: Tensor) -> Tensor:
    """A number per channel, as `(1, c, 1, 1)` beside the latents `like`."""
    return torch.as_tensor(values).to(like).view(1, -1, 1, 1)
