"""Toybox-Flow's latents, and what they are held close to.

Toybox's autoencoder is made for 64×64 pictures. Of ones of 128×128 it makes 32×32 latents of four
channels: as many numbers as 16×16 latents of sixteen, into which they fold two by two. They are
smooth and known to be easy to learn, so Toybox-Flow's own autoencoder learns to stay close to them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .files import replace_file
from .flow_world import part_folders
from .pool import load_pool
from .vae import encode

TEACHER = Path(__file__).resolve().parent.parent / "toybox" / "vae"
LATENTS = "latents.npy"

_STATISTICS_IMAGES = 500


def load_frozen(folder: Path) -> AutoencoderKL:
    """An autoencoder that learns no more, in float32."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    vae.requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Folding:
    """The change from Toybox's latents `(n, c, 2h, 2w)` to folded ones `(n, 4c, h, w)`.

    Attributes:
        mean, std: of Toybox's latents, by channel; folded ones have mean 0 and variance 1.
    """

    mean: Tensor
    std: Tensor

    def fold(self, latents: Tensor) -> Tensor:
        """Standardise, and lay every two by two places into channels."""
        mean, std = (values[None, :, None, None] for values in (self.mean, self.std))
        return F.pixel_unshuffle((latents - mean) / std, 2)

    @classmethod
    def measure(cls, work: Path, teacher: AutoencoderKL, device: torch.device) -> Folding:
        """Of the last pictures of the pool's first part."""
        images = load_pool(part_folders(work)[0]).images[-_STATISTICS_IMAGES:]
        latents = encode(teacher, images, device).float()
        return cls(latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device))


def encode_parts(work: Path, device: torch.device) -> None:
    """Write the latents of every part that lacks them."""
    vae = load_frozen(work / "vae").to(device)
    for folder in part_folders(work):
        if not (folder / LATENTS).exists():
            content = io.BytesIO()
            np.save(content, encode(vae, load_pool(folder).images, device).numpy())
            replace_file(folder / LATENTS, content.getvalue())
            print(f"latents: {folder.name} of the pool is done", flush=True)
