"""Flow matching: a straight way from image to noise, and its velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families.noise import NoiseProcess, NoiseSettings


@dataclass(frozen=True)
class Flow(NoiseProcess):
    """`x_t = (1 − σ) x + σ ε` with velocity `ε − x`; a time is the share of noise σ.

    Attributes:
        sigmas: `(steps,)` float32, falling: the σ that may be drawn.
        settings: density of times and weights of errors; `weighting_scheme` is given.
    """

    sigmas: Tensor
    settings: NoiseSettings

    @classmethod
    def of(cls, scheduler: Any, settings: NoiseSettings) -> Flow:
        """The process that a pipeline with this scheduler undoes.

        The grid of σ has the scheduler's constant shift; a shift that depends on the image's size
        belongs to drawing and is left out.

        Raises:
            ConfigError: the scheduler is of another kind, or the settings are.
        """
        config = scheduler.config
        if "shift" not in config and not config.get("use_flow_sigmas"):
            raise ConfigError(
                f"this kind of base model is trained by flow matching, and its scheduler is a "
                f"{type(scheduler).__name__}; load it with its own, such as a "
                f"FlowMatchEulerDiscreteScheduler"
            )
        if settings.snr_gamma or settings.noise_offset:
            raise ConfigError(
                "snr_gamma and noise_offset are for base models that predict ε or v, and this one "
                "is trained by flow matching; leave them out, or use weighting_scheme"
            )
        grid = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=config["num_train_timesteps"],
            shift=config.get("shift", config.get("flow_shift")),
            use_dynamic_shifting=config.get("use_dynamic_shifting", False),
        )
        return cls(grid.sigmas, settings)

    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(latent.shape, generator=generator)
        settings, steps = self.settings, len(self.sigmas)
        place = compute_density_for_timestep_sampling(
            settings.weighting_scheme,
            batch_size=1,
            logit_mean=settings.logit_mean,
            logit_std=settings.logit_std,
            mode_scale=settings.mode_scale,
            generator=generator,
        )
        # Some densities reach 1 itself.
        return noise, self.sigmas[int((place * steps).clamp(max=steps - 1))]

    def noisy(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        sigma = time.to(latents).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise - latents

    def weigh(self, errors: Tensor, time: Tensor) -> Tensor:
        weights: Tensor = compute_loss_weighting_for_sd3(self.settings.weighting_scheme, time)
        return errors * weights.to(errors)


def scheduler_timesteps(scheduler: Any, sigma: Tensor) -> Tensor:
    """The timesteps that a scheduler names for σ, like `sigma` in shape.

    Solvers with `use_flow_sigmas` count in whole steps and cut off what is between.
    """
    timesteps = sigma * scheduler.config["num_train_timesteps"]
    return timesteps.long() if scheduler.config.get("use_flow_sigmas") else timesteps
