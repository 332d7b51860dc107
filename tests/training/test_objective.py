"""The denoising objective against formulas written out."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.objective import Objective

TYPES = ("epsilon", "v_prediction")


def objective(prediction_type: str = "epsilon", **kwargs: float) -> Objective:
    return Objective(DDPMScheduler(prediction_type=prediction_type), **kwargs)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_losses(prediction_type: str, gamma: float | None) -> None:
    made = Objective(DDPMScheduler(prediction_type=prediction_type), gamma)
    generator = torch.Generator().manual_seed(0)
    x, noise, guess = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(3))
    t = torch.tensor([10, 500, 990])
    alpha = made.scheduler.alphas_cumprod[t].double()
    a, s = alpha.sqrt().view(3, 1, 1, 1), (1 - alpha).sqrt().view(3, 1, 1, 1)
    torch.testing.assert_close(made.noisy(x, noise, t).double(), a * x + s * noise)
    wanted = noise if prediction_type == "epsilon" else a * noise - s * x
    expected = (guess - wanted).square().mean(dim=(1, 2, 3))
    if gamma is not None:
        snr = alpha / (1 - alpha)
        divisor = snr if prediction_type == "epsilon" else snr + 1
        expected = expected * snr.clamp(max=gamma) / divisor
    # float32 against float64, over sums of 16 squares
    torch.testing.assert_close(
        made.losses(guess, x, noise, t).double(), expected.double(), rtol=1e-4, atol=1e-6
    )


def test_sample_prediction_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sample'"):
        objective("sample")


def test_noise_offset_shifts_channels() -> None:
    latent = torch.zeros(4, 32, 32)
    plain, _ = objective().draw(latent, torch.Generator().manual_seed(0))
    shifted, t = objective(noise_offset=10.0).draw(latent, torch.Generator().manual_seed(0))
    difference = shifted - plain
    assert difference.std(dim=(1, 2)).max() < 1e-5
    assert difference.mean(dim=(1, 2)).abs().min() > 0.1
    assert 0 <= int(t) < 1000
