"""Toybox-Flow's latents: those of Toybox's autoencoder, of twice the edge, folded two by two.

Toybox's autoencoder is made for 64×64 pictures and rebuilds ones of 128×128 at 29.6 dB: it makes
32×32 latents of four channels, as many numbers as 16×16 latents of sixteen. So the flow can be
trained on its latents before an autoencoder of its own is there, which learns them in `flow_vae`.
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


def load_teacher(folder: Path = TEACHER) -> AutoencoderKL:
    """Toybox's autoencoder, in float32."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    vae.requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Folding:
    """The change from Toybox's latents `(n, c, 2h, 2w)` to folded ones `(n, 4c, h, w)`, and back.

    Attributes:
        mean, std: of Toybox's latents, by channel; folded ones have mean 0 and variance 1.
    """

    mean: Tensor
    std: Tensor

    def fold(self, latents: Tensor) -> Tensor:
        """Standardise, and lay every two by two places into channels."""
        return F.pixel_unshuffle((latents - self._of(self.mean)) / self._of(self.std), 2)

    def unfold(self, folded: Tensor) -> Tensor:
        """The inverse of `fold`."""
        return F.pixel_shuffle(folded, 2) * self._of(self.std) + self._of(self.mean)

    def to(self, device: torch.device) -> Folding:
        """The same on another device."""
        return Folding(self.mean.to(device), self.std.to(device))

    @staticmethod
    def _of(values: Tensor) -> Tensor:
        return values[None, :, None, None]

    @classmethod
    def load(cls, work: Path, teacher: AutoencoderKL, device: torch.device) -> Folding:
        """Measured once, on the last pictures of the pool's first part."""
        path = work / "folding.pt"
        if not path.exists():
            images = load_pool(part_folders(work)[0]).images[-_STATISTICS_IMAGES:]
            latents = encode(teacher, images, device).float()
            values = {"mean": latents.mean((0, 2, 3)), "std": latents.std((0, 2, 3))}
            content = io.BytesIO()
            torch.save(values, content)
            replace_file(path, content.getvalue())
        values = torch.load(path, weights_only=True)
        return cls(**values).to(device)


def encode_parts(work: Path, device: torch.device, teacher_folder: Path = TEACHER) -> None:
    """Write the folded latents of every part that lacks them."""
    teacher = load_teacher(teacher_folder).to(device)
    folding = Folding.load(work, teacher, device)
    for folder in part_folders(work):
        if not (folder / LATENTS).exists():
            latents = encode(teacher, load_pool(folder).images, device).float().to(device)
            content = io.BytesIO()
            np.save(content, folding.fold(latents).half().cpu().numpy())
            replace_file(folder / LATENTS, content.getvalue())
            print(f"latents: {folder.name} of the pool is done", flush=True)
