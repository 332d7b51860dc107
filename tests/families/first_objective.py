"""The objective of the first trainer, whose every bit Stable Diffusion's training keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Training examples, ready for the denoiser.

    Attributes:
        latents: `(n, c, h, w)` float32, scaled as the UNet expects.
        noise: like `latents`.
        timesteps: `(n,)` integers.
        text: embeddings of the prompts, `(n, length, width)`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor


@dataclass(frozen=True)
class Objective:
    """Noise prediction as the base model was trained for.

    Attributes:
        scheduler: the base's noise schedule, ε- or v-prediction.
        snr_gamma: γ of Min-SNR weighting (arXiv 2303.09556), or None for equal weights.
        noise_offset: strength of per-channel noise.
    """

    scheduler: DDPMScheduler
    snr_gamma: float | None = None
    noise_offset: float = 0.0

    @property
    def prediction_type(self) -> str:
        """`epsilon` or `v_prediction`."""
        return str(self.scheduler.config["prediction_type"])

    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise like `latent` `(c, h, w)`, and a timestep `()`, from a CPU generator."""
        noise = torch.randn(latent.shape, generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn(latent.shape[0], 1, 1, generator=generator)
        steps = int(self.scheduler.config["num_train_timesteps"])
        return noise, torch.randint(steps, (), generator=generator)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`, `(n, c, h, w)`: latents with the noise of their timesteps `(n,)`."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def batch_losses(self, unet: Any, batch: Batch) -> Tensor:
        """Weighted error of each example `(n,)`, float32, computed where the UNet is."""
        device, dtype = unet.device, unet.dtype
        latents, noise = batch.latents.to(device), batch.noise.to(device)
        timesteps, text = batch.timesteps.to(device), batch.text.to(device, dtype)
        noisy = self.noisy(latents, noise, timesteps).to(dtype)
        prediction = unet(noisy, timesteps, text).sample
        return self.losses(prediction, latents, noise, timesteps)

    def losses(
        self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Weighted mean squared error of each example, `(n,)` float32."""
        is_velocity = self.prediction_type == "v_prediction"
        wanted = self.scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        errors = (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3))
        if self.snr_gamma is None:
            return errors
        snr = compute_snr(self.scheduler, timesteps)
        # Weights of the x₀ loss, expressed for the quantity predicted.
        return errors * snr.clamp(max=self.snr_gamma) / (snr + 1 if is_velocity else snr)
