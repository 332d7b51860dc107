"""Toybox-Flow's autoencoder: Toybox's with one level more, between its own and the latents.

It starts with Toybox's levels near the pictures, and learns to rebuild pictures from latents that
stay close to Toybox's folded ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .features import EfficientNetLite0, perceptual_distance
from .files import replace_folder
from .flow_latents import Folding, load_frozen
from .flow_world import part_folders
from .pool import load_pool
from .training import Schedule, Training
from .vae import HELD_BACK, as_pictures

_LEVEL_WIDTH = 128
_LATENT_NOISE = 0.1
"""Standard deviation of what is added to latents that are decoded: generated ones are not exact."""

_LOG_VARIANCE = -8.0
_PERCEPTUAL_WEIGHT, _ANCHOR_WEIGHT = 0.1, 0.1
_REPORT_IMAGES = 256


def new_flow_vae(teacher: AutoencoderKL) -> AutoencoderKL:
    """Toybox's autoencoder with an untrained level between its own and the latents."""
    config = teacher.config
    widths = (*config.block_out_channels, _LEVEL_WIDTH)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=config.layers_per_block,
        latent_channels=4 * config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=2 * config.sample_size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = _LOG_VARIANCE
    _take_over(vae, teacher)
    return vae.to(memory_format=torch.channels_last)


@torch.no_grad()
def _take_over(vae: AutoencoderKL, teacher: AutoencoderKL) -> None:
    """Copy the levels near the pictures."""
    parameters = dict(vae.named_parameters())
    for name, value in teacher.named_parameters():
        if re.match(r"encoder\.(conv_in|down_blocks)", name):
            parameters[name].copy_(value)
        elif re.match(r"decoder\.(up_blocks|conv_norm_out|conv_out)", name):
            # Counted from the latents, so that one level more shifts the numbers.
            moved = re.sub(r"(?<=up_blocks\.)\d+", lambda match: f"{int(match[0]) + 1}", name)
            if parameters[moved].shape == value.shape:
                parameters[moved].copy_(value)


@dataclass
class Lessons:
    """What the autoencoder learns from.

    Attributes:
        teacher: whose folded latents ours stay close to.
        folding: of them.
        images: 8-bit pictures `(n, height, width, 3)`; those held back come last.
        network: sees how far apart pictures are.
    """

    teacher: AutoencoderKL
    folding: Folding
    images: Tensor
    network: EfficientNetLite0

    @classmethod
    def load(cls, work: Path, teacher: AutoencoderKL, device: torch.device, parts: int) -> Lessons:
        """Some parts of the pool."""
        folders = part_folders(work)[:parts][::-1]
        images = np.concatenate([load_pool(folder).images for folder in folders])
        return cls(
            teacher.to(device),
            Folding.measure(work, teacher, device),
            torch.from_numpy(images).to(device),
            EfficientNetLite0().to(device),
        )

    def anchors(self, images: Tensor) -> Tensor:
        """Latents to stay close to."""
        with torch.no_grad():
            return self.folding.fold(self.teacher.encode(images).latent_dist.mean)

    def loss(self, vae: AutoencoderKL, count: int, generator: torch.Generator) -> Tensor:
        """Error of pictures that go through the autoencoder, and of the latents on the way."""
        device = generator.device
        learned = len(self.images) - HELD_BACK
        drawn = torch.randint(learned, (count,), generator=generator, device=device)
        images = as_pictures(self.images[drawn])
        latents = vae.encode(images).latent_dist.mean
        noise = torch.randn(latents.shape, generator=generator, device=device)
        output = vae.decode(latents + _LATENT_NOISE * noise).sample
        return (
            F.l1_loss(output, images)
            + _PERCEPTUAL_WEIGHT * perceptual_distance(self.network, output, images)
            + _ANCHOR_WEIGHT * F.mse_loss(latents, self.anchors(images))
        )

    @torch.no_grad()
    def report(self, vae: AutoencoderKL) -> str:
        """Quality on pictures held back."""
        errors, quality = [], []
        first = len(self.images) - HELD_BACK
        for batch in self.images[first : first + min(HELD_BACK, _REPORT_IMAGES)].split(16):
            images = as_pictures(batch)
            latents = vae.encode(images).latent_dist.mean
            errors.append((latents - self.anchors(images)).square().mean((1, 2, 3)))
            quality.append(_psnr(vae.decode(latents).sample, images))
        error, decibels = (float(torch.cat(values).mean()) for values in (errors, quality))
        return f"PSNR {decibels:.2f} dB, latents {error:.4f} of their variance off Toybox's"


def _psnr(output: Tensor, images: Tensor) -> Tensor:
    error = ((output.clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    return -10 * error.log10()


def train_flow_vae(
    work: Path,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    teacher_folder: Path,
    parts: int,
) -> None:
    """Train from wherever the checkpoint stands, and write the autoencoder as it is then."""
    torch.manual_seed(seed)
    teacher = load_frozen(teacher_folder)
    lessons = Lessons.load(work, teacher, device, parts)
    vae = new_flow_vae(teacher).to(device)
    training = Training([vae], work / "vae.pt", schedule, seed)

    training.run(
        lambda generator: lessons.loss(vae, schedule.batch_size, generator),
        lambda: lessons.report(vae),
        device,
    )
    training.average.swap()
    vae.eval().save_pretrained(work / "vae.new")
    replace_folder(work / "vae.new", work / "vae")
