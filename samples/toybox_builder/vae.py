"""The autoencoder: 64×64 pictures to 16×16 latents of four channels."""

from __future__ import annotations

import time
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

CROP_SHARE = 0.65
"""Part of the time spent on small crops, where steps are cheap."""

HELD_BACK = 1000
"""Pictures at the end of the pool that no training sees; they measure the result."""

_CROP = SIZE // 2
_BATCH_CROPS, _BATCH_WHOLE = 16, 8
_KL_WEIGHT = 1e-4
_PERCEPTUAL_WEIGHT = 0.1
_MUON_RATE, _ADAM_RATE = 0.02, 2e-3
_CHECKPOINT_SECONDS = 120


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of the Stable Diffusion kind, small enough for a CPU."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """8-bit pictures (N, H, W, 3) to a tensor (N, 3, H, W) in [-1, 1]."""
    return as_pictures(torch.from_numpy(np.array(images)))


def as_pictures(images: Tensor) -> Tensor:
    """The same for pictures that are a tensor already, on its device."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch(pool: Pool, count: int, crop: bool, rng: np.random.Generator) -> np.ndarray:
    indices = np.sort(rng.integers(0, len(pool.images) - HELD_BACK, count))
    images = pool.images[indices]
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
    if crop:
        top, left = rng.integers(0, SIZE - _CROP + 1, 2)
        images = images[:, top : top + _CROP, left : left + _CROP]
    return images


def train_vae(pool: Pool, work: Path, minutes: float, device: torch.device, seed: int) -> None:
    """Train within a time budget, resuming where an earlier run stopped."""
    torch.manual_seed(seed)
    vae = new_vae().to(device, memory_format=torch.channels_last).train()
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
    budget = TimeBudget(minutes, spent)
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
        crop = progress < CROP_SHARE
        batch = _batch(pool, _BATCH_CROPS if crop else _BATCH_WHOLE, crop, rng)
        images = to_tensor(batch).to(device)
        with autocast(device):
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample()).sample
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
    vae.register_to_config(scaling_factor=_scaling_factor(vae, pool, device))
    vae.save_pretrained(work / "vae.new")
    replace_folder(work / "vae.new", work / "vae")
    print(f"vae: {step} steps, PSNR {psnr(vae, pool, device):.2f} dB", flush=True)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> Tensor:
    """Means of the posteriors, unscaled, as (N, 4, 16, 16)."""
    parts = []
    for start in range(0, len(images), 64):
        batch = as_pictures(torch.from_numpy(np.array(images[start : start + 64])).to(device))
        with autocast(device):
            mean = vae.encode(batch).latent_dist.mean
        parts.append(mean.half().cpu())
        if start % 12800 == 0:
            print(f"latents: {start}/{len(images)}", flush=True)
    return torch.cat(parts)


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
