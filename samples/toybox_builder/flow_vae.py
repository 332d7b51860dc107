"""Toybox-Flow's autoencoder: Toybox's with one level more, which learns the folded latents.

The levels near the pictures are Toybox's. Of the encoder they stay as they are, for the latents
are given; the decoder learns in two parts, first the features that Toybox's decoder has inside,
which is cheap, then pictures.
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
from .flow_latents import LATENTS, Folding, load_teacher
from .flow_world import part_folders
from .pool import load_pool
from .training import Schedule, Training
from .vae import HELD_BACK, to_tensor

FEATURE_SHARE = 0.5
"""Part of the steps in which the decoder learns features."""

_LEVEL_WIDTH = 128
_LATENT_NOISE = 0.05
"""Standard deviation of what is added to latents that are decoded: generated ones are not exact."""

_LOG_VARIANCE = -8.0
_PERCEPTUAL_WEIGHT = 0.1
_REPORT_IMAGES = 64


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
    """Copy the levels near the pictures, and keep those of the encoder from learning."""
    parameters = dict(vae.named_parameters())
    for name, value in teacher.named_parameters():
        if re.match(r"encoder\.(conv_in|down_blocks)", name):
            parameters[name].copy_(value)
            parameters[name].requires_grad_(False)
        elif re.match(r"decoder\.(up_blocks|conv_norm_out|conv_out)", name):
            # Counted from the latents, so that one level more shifts the numbers.
            moved = re.sub(r"(?<=up_blocks\.)\d+", lambda match: f"{int(match[0]) + 1}", name)
            if parameters[moved].shape == value.shape:
                parameters[moved].copy_(value)


@dataclass
class Lessons:
    """What the autoencoder learns from: the teacher, pictures and their folded latents."""

    teacher: AutoencoderKL
    folding: Folding
    images: np.ndarray
    latents: Tensor
    network: EfficientNetLite0
    device: torch.device

    @classmethod
    def load(cls, work: Path, teacher: AutoencoderKL, device: torch.device, parts: int) -> Lessons:
        """Some parts of the pool; the pictures held back come last."""
        folders = [p for p in part_folders(work) if (p / LATENTS).exists()][:parts][::-1]
        return cls(
            teacher.to(device),
            Folding.load(work, teacher, device),
            np.concatenate([load_pool(folder).images for folder in folders]),
            torch.from_numpy(np.concatenate([np.load(folder / LATENTS) for folder in folders])),
            EfficientNetLite0().to(device),
            device,
        )

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and folded latents."""
        images = to_tensor(self.images[indices.numpy()]).to(self.device)
        return images, self.latents[indices].float().to(self.device)

    def loss(
        self, vae: AutoencoderKL, count: int, features: bool, generator: torch.Generator
    ) -> Tensor:
        """Error of the encoder, and of the decoder in features or in pictures."""
        drawn = torch.randint(len(self.images) - HELD_BACK, (count,), generator=generator)
        images, latents = self.at(drawn)
        encoding = F.mse_loss(vae.encode(images).latent_dist.mean, latents)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        noisy = latents + _LATENT_NOISE * noise
        if features:
            with torch.no_grad():
                wanted = _teacher_features(self.teacher, self.folding.unfold(latents))
            decoding = F.mse_loss(_features(vae, noisy), wanted) / wanted.var()
        else:
            decoding = self._picture_error(vae, noisy, images, generator)
        return encoding + decoding

    def _picture_error(
        self, vae: AutoencoderKL, latents: Tensor, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Of a crop of half the edge."""
        edge = latents.shape[-1] // 2
        scale = images.shape[-1] // latents.shape[-1]
        top, left = torch.randint(edge + 1, (2,), generator=generator).tolist()
        output = vae.decode(latents[..., top : top + edge, left : left + edge]).sample
        rows, columns = (slice(scale * at, scale * (at + edge)) for at in (top, left))
        wanted = images[..., rows, columns]
        perceptual = perceptual_distance(self.network, output, wanted)
        return F.l1_loss(output, wanted) + _PERCEPTUAL_WEIGHT * perceptual

    @torch.no_grad()
    def report(self, vae: AutoencoderKL) -> str:
        """Quality on pictures held back: of the latents, and of pictures both ways."""
        errors, given, both = [], [], []
        first = len(self.images) - HELD_BACK
        count = min(HELD_BACK, _REPORT_IMAGES)
        for indices in torch.arange(first, first + count).split(16):
            images, latents = self.at(indices)
            encoded = vae.encode(images).latent_dist.mean
            errors.append((encoded - latents).square().mean((1, 2, 3)))
            given.append(_psnr(vae.decode(latents).sample, images))
            both.append(_psnr(vae.decode(encoded).sample, images))
        error, from_given, from_own = (float(torch.cat(v).mean()) for v in (errors, given, both))
        return (
            f"latents off by {error:.4f} of their variance, PSNR {from_given:.2f} dB from the "
            f"teacher's latents and {from_own:.2f} dB from its own"
        )


def _psnr(output: Tensor, images: Tensor) -> Tensor:
    error = ((output.clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    return -10 * error.log10()


def _features(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Of our decoder, where its edge is the teacher's innermost."""
    decoder = vae.decoder
    hidden = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    hidden = decoder.up_blocks[0](hidden)
    features: Tensor = decoder.up_blocks[1].resnets[0](hidden, None)
    return features


def _teacher_features(teacher: AutoencoderKL, latents: Tensor) -> Tensor:
    """The same, of the teacher's decoder."""
    decoder = teacher.decoder
    hidden = decoder.mid_block(decoder.conv_in(teacher.post_quant_conv(latents)))
    features: Tensor = decoder.up_blocks[0].resnets[0](hidden, None)
    return features


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
    teacher = load_teacher(teacher_folder)
    lessons = Lessons.load(work, teacher, device, parts)
    vae = new_flow_vae(teacher).to(device)
    training = Training([vae], work / "vae.pt", schedule, seed)

    def loss(generator: torch.Generator) -> Tensor:
        features = training.progress < FEATURE_SHARE
        return lessons.loss(vae, schedule.batch_size, features, generator)

    training.run(loss, lambda: lessons.report(vae), device)
    training.average.swap()
    vae.eval().save_pretrained(work / "vae.new")
    replace_folder(work / "vae.new", work / "vae")
