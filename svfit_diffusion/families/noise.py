"""How noise is put on latents, and what a denoiser is to say about it: common to all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.errors import ConfigError

WEIGHTING_SCHEMES = ("none", "logit_normal", "mode", "sigma_sqrt", "cosmap")


@dataclass(frozen=True)
class NoiseSettings:
    """What a user may change about the noise; the first two for ε and v, the others for flows.

    Attributes:
        snr_gamma: γ of Min-SNR weighting (arXiv 2303.09556), or None for equal weights.
        noise_offset: strength of noise that shifts whole channels.
        weighting_scheme: density of times and weights of errors (arXiv 2403.03206), one of
            `WEIGHTING_SCHEMES`; None is the family's own.
        logit_mean: mean of `logit_normal`'s normal distribution.
        logit_std: its standard deviation.
        mode_scale: how far `mode` departs from uniform times.

    Raises:
        ConfigError: no such scheme.
    """

    snr_gamma: float | None = None
    noise_offset: float = 0.0
    weighting_scheme: str | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29

    def __post_init__(self) -> None:
        if self.weighting_scheme not in (None, *WEIGHTING_SCHEMES):
            raise ConfigError(
                f"unknown weighting_scheme {self.weighting_scheme!r}; "
                f"use one of {', '.join(WEIGHTING_SCHEMES)}"
            )


class NoiseProcess(ABC):
    """From images to noise. What `time` is, the process knows, and the family that predicts."""

    @abstractmethod
    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise like `latent` `(c, h, w)`, float32, and a time `()`, from a CPU generator."""

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Latents `(n, c, h, w)` with the noise of their times `(n,)`."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the denoiser should say, `(n, c, h, w)`: what the pipeline's scheduler expects."""

    @abstractmethod
    def weigh(self, errors: Tensor, time: Tensor) -> Tensor:
        """Squared errors `(n,)` times the weights of their times `(n,)`."""

    def losses(self, prediction: Tensor, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Weighted mean squared error of each example, `(n,)` float32."""
        wanted = self.target(latents, noise, time)
        errors = (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3))
        return self.weigh(errors, time)
