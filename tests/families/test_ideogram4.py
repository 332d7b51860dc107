"""What only Ideogram 4 has: noise that depends on the size, and text behind padding."""

from __future__ import annotations

import pytest
import tiny_pipelines
import torch
from torch import Tensor

from svfit_diffusion.families import NoiseSettings, PhotoSize, family_of, ideogram4


def median_time(side: int) -> float:
    """Median σ drawn for a square image of so many pixels."""
    family = family_of(tiny_pipelines.build("ideogram4"))
    process, source = family.noise_process(NoiseSettings()), torch.Generator().manual_seed(0)
    latent = torch.zeros(1, *[side // family.size_multiple] * 2)
    times = [process.draw(latent, source)[1] for _ in range(300)]
    return float(torch.stack(times).median())


@pytest.mark.parametrize(("side", "median"), [(512, 0.5), (2048, 0.8), (128, 0.2)])
def test_larger_images_are_noisier(side: int, median: float) -> None:
    # σ = sigmoid(ln(side / 512)); a median of 300 has a standard error of 0.03 at most
    assert abs(median_time(side) - median) < 0.1


def test_a_scheme_that_is_asked_for_is_used() -> None:
    family = family_of(tiny_pipelines.build("ideogram4"))
    process = family.noise_process(NoiseSettings(weighting_scheme="logit_normal", logit_std=1e-3))
    _, time = process.draw(torch.zeros(1, 256, 256), torch.Generator().manual_seed(0))
    assert abs(time - 0.5) < 0.01


@torch.no_grad()
def test_padding_of_the_text_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(tiny_pipelines.build("ideogram4"))
    latents = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))

    def predicted(places: int) -> Tensor:
        monkeypatch.setattr(ideogram4, "TEXT_TOKENS", places)
        conditions = family.encode_prompts(["a dog"])
        size = PhotoSize.whole(8, 12)
        return family.predict(latents, torch.tensor([0.5]), conditions, [size])

    # Attention over another length sums in another order.
    torch.testing.assert_close(predicted(64), predicted(300), rtol=1e-4, atol=1e-5)
