"""Autoencoders: pictures to 16×16 latents of a few channels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .budget import (
    TimeBudget,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
    set_learning_rate,
)
from .features import EfficientNetLite0, perceptual_distance
from .files import replace_folder
from .muon import split_optimizers
from .pool import Pool
from .precision import autocast
from .scenes import SIZE

HELD_BACK = 1000
"""Pictures at the end of the pool that no training sees; they measure the result."""

_KL_WEIGHT = 1e-4
_PERCEPTUAL_WEIGHT = 0.1
_MUON_RATE, _ADAM_RATE = 0.02, 2e-3
_CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Design:
    """An autoencoder and its training.

    Attributes:
        size: edge of the pictures, in pixels.
        widths: of the levels; each after the first halves the picture.
        channels: of the latents.
        crop_share: part of the time spent on crops of half the edge, where steps are cheap.
        halved_share: part of the steps that decode halved latents to halved pictures, which keeps
            latents smooth and so easier to learn.
        batches: pictures a step, of crops and of whole ones.
        standard: gives every latent channel mean 0 and variance 1.
    """

    size: int
    widths: tuple[int, ...]
    channels: int
    crop_share: float
    halved_share: float
    batches: tuple[int, int]
    standard: bool


TOYBOX_VAE = Design(SIZE, (32, 64, 96), 4, 0.65, 0.0, (16, 8), standard=False)


def new_vae(design: Design) -> AutoencoderKL:
    """An untrained autoencoder of the Stable Diffusion kind, small enough for a CPU."""
    levels = len(design.widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=design.widths,
        layers_per_block=1,
        latent_channels=design.channels,
        norm_num_groups=16,
        sample_size=design.size,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """8-bit pictures (N, H, W, 3) to a tensor (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch(pool: Pool, count: int, crop: bool, rng: np.random.Generator) -> np.ndarray:
    indices = np.sort(rng.integers(0, len(pool.images) - HELD_BACK, count))
    images = pool.images[indices]
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
    if crop:
        edge = images.shape[1] // 2
        top, left = rng.integers(0, edge + 1, 2)
        images = images[:, top : top + edge, left : left + edge]
    return images


def train_vae(
    pool: Pool,
    work: Path,
    minutes: float,
    device: torch.device,
    seed: int,
    design: Design,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train within a time budget by a clock, resuming where an earlier run stopped."""
    torch.manual_seed(seed)
    vae = new_vae(design).to(device, memory_format=torch.channels_last).train()
    network = EfficientNetLite0().to(device)
    optimizers = split_optimizers([vae], _MUON_RATE, _ADAM_RATE)
    checkpoint = work / "vae.pt"
    step, spent = 0, 0.0
    if (state := load_checkpoint(checkpoint)) is not None:
        vae.load_state_dict(state["vae"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, spent = state["step"], state["spent"]
    rng = np.random.default_rng([seed, step])
    budget = TimeBudget(minutes, spent, clock)
    saved = time.monotonic()

    def save() -> None:
        save_checkpoint(
            checkpoint,
            {
                "vae": vae.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "spent": budget.spent_seconds,
            },
        )

    while (progress := budget.progress) < 1:
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate_factor(progress))
            optimizer.zero_grad(set_to_none=True)
        crop = progress < design.crop_share
        batch = _batch(pool, design.batches[0 if crop else 1], crop, rng)
        images = to_tensor(batch).to(device)
        with autocast(device):
            posterior = vae.encode(images).latent_dist
            latents = posterior.sample()
            if crop and rng.random() < design.halved_share:
                latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
            output = vae.decode(latents).sample
            perceptual = images.new_zeros(())
            if not crop:
                perceptual = perceptual_distance(network, output, images)
        pixel = F.l1_loss(output.float(), images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixel + _PERCEPTUAL_WEIGHT * perceptual + _KL_WEIGHT * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % 50 == 0:
            print(
                f"vae: step {step}, {progress:.0%}, L1 {pixel.item():.4f}, "
                f"perceptual {float(perceptual):.4f}, KL {kl.item():.2f}",
                flush=True,
            )
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
            save()
            saved = time.monotonic()
    save()
    vae.eval()
    if design.standard:
        standardise(vae, encode(vae, pool.images[-HELD_BACK:], device).float())
    vae.register_to_config(scaling_factor=_scaling_factor(vae, pool, device), shift_factor=0.0)
    vae.save_pretrained(work / "vae.new")
    replace_folder(work / "vae.new", work / "vae")
    print(f"vae: {step} steps, PSNR {psnr(vae, pool, device):.2f} dB", flush=True)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> Tensor:
    """Means of the posteriors, unscaled, as (N, channels, 16, 16)."""
    parts = []
    for start in range(0, len(images), 32):
        batch = to_tensor(images[start : start + 32]).to(device)
        with autocast(device):
            mean = vae.encode(batch).latent_dist.mean
        parts.append(mean.half().cpu())
        if start % 12800 == 0:
            print(f"latents: {start}/{len(images)}", flush=True)
    return torch.cat(parts)


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give every channel mean 0 and variance 1, judged by some latents, and leave all pictures.

    The 1×1 convolutions at either side of the latents take the change up exactly.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    count = len(mean)
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std[None, :, None, None]
    into.bias[:count] -= mean
    into.weight[:count] /= std[:, None, None, None]
    into.bias[:count] /= std
    into.bias[count:] -= 2 * std.log()


def _scaling_factor(vae: AutoencoderKL, pool: Pool, device: torch.device) -> float:
    means = encode(vae, pool.images[-HELD_BACK:], device)
    return 1 / float(means.float().std())


@torch.inference_mode()
def psnr(vae: AutoencoderKL, pool: Pool, device: torch.device) -> float:
    """Mean reconstruction PSNR over the held-back pictures, in decibels."""
    values = []
    for start in range(len(pool.images) - HELD_BACK, len(pool.images), 100):
        images = to_tensor(pool.images[start : start + 100]).to(device)
        output = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        error = ((output - images) / 2).square().mean((1, 2, 3))
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def encode_pool(pool: Pool, work: Path, device: torch.device) -> None:
    """Write the latents of a course's whole pool next to it."""
    vae = AutoencoderKL.from_pretrained(work.parent / "vae").to(device).eval()
    vae = vae.to(memory_format=torch.channels_last)
    save_checkpoint(work / "latents.pt", {"latents": encode(vae, pool.images, device)})
