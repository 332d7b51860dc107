"""ε- and v-prediction over the discrete timesteps of a DDPM schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families.noise import NoiseProcess, NoiseSettings


@dataclass(frozen=True)
class Diffusion(NoiseProcess):
    """Noise prediction; a time is one of the schedule's integer timesteps.

    Attributes:
        scheduler: the base's noise schedule, ε- or v-prediction.
        snr_gamma: see `NoiseSettings`.
        noise_offset: see `NoiseSettings`.
    """

    scheduler: DDPMScheduler
    snr_gamma: float | None = None
    noise_offset: float = 0.0

    @classmethod
    def of(cls, scheduler: Any, settings: NoiseSettings) -> Diffusion:
        """The process that a pipeline with this scheduler undoes.

        Raises:
            ConfigError: the scheduler is of another kind, or the settings are.
        """
        kind = scheduler.config.get("prediction_type")
        if kind not in ("epsilon", "v_prediction") or "sigma_data" in scheduler.config:
            raise ConfigError(
                f"the base model's prediction type is {kind!r} with a {type(scheduler).__name__}; "
                f"training supports 'epsilon' and 'v_prediction' with a DDPM noise schedule"
            )
        if settings.weighting_scheme not in (None, "none"):
            raise ConfigError(
                f"weighting_scheme {settings.weighting_scheme!r} is for flow matching, and this "
                f"base model predicts {kind!r}; use snr_gamma, or leave weighting_scheme out"
            )
        schedule = DDPMScheduler.from_config(scheduler.config)
        return cls(schedule, settings.snr_gamma or None, settings.noise_offset)

    @property
    def _is_velocity(self) -> bool:
        return bool(self.scheduler.config["prediction_type"] == "v_prediction")

    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(latent.shape, generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn(latent.shape[0], 1, 1, generator=generator)
        steps = int(self.scheduler.config["num_train_timesteps"])
        return noise, torch.randint(steps, (), generator=generator)

    def noisy(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, time)

    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.scheduler.get_velocity(latents, noise, time) if self._is_velocity else noise

    def weigh(self, errors: Tensor, time: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return errors
        snr = compute_snr(self.scheduler, time)
        # Weights of the x₀ loss, expressed for the quantity predicted.
        if self._is_velocity:
            return errors * snr.clamp(max=self.snr_gamma) / (snr + 1)
        # 1 where a schedule with zero terminal SNR ends, and not 0 / 0.
        snr = snr.where(snr > 0, self.snr_gamma)
        return errors * snr.clamp(max=self.snr_gamma) / snr
