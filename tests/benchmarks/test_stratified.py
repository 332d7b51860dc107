"""Times that are spread evenly."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from benchmarks.stratified import Stratified
from svfit_diffusion.families import NoiseProcess, NoiseSettings
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.families.flow import Flow

PROCESSES = {
    "diffusion": Diffusion.of(DDPMScheduler(), NoiseSettings()),
    "flow": Flow.of(
        FlowMatchEulerDiscreteScheduler(), NoiseSettings(weighting_scheme="logit_normal")
    ),
}
LATENT = torch.zeros(4, 2, 2)


def times(process: NoiseProcess, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([process.draw(LATENT, generator)[1] for _ in range(count)])


@pytest.mark.parametrize("name", PROCESSES)
def test_times_are_as_likely_as_before_and_leave_no_gaps(name: str) -> None:
    process = PROCESSES[name]
    even = times(Stratified.of(process, 0), 64)
    assert even.dtype == times(process, 1).dtype
    likely = times(process, 20_000).sort().values
    quantiles = torch.searchsorted(likely, even.sort().values).float() / len(likely)
    # A point in each of 64 places would be off by 1/64 at most; chance is by 0.1 or so. Knowing the
    # distribution by 4,096 draws costs another 0.02.
    assert (quantiles - (torch.arange(64) + 0.5) / 64).abs().max() < 0.04


def test_noise_and_losses_are_the_processs_own() -> None:
    process = PROCESSES["diffusion"]
    even = Stratified.of(process, 0)
    noise, time = even.draw(LATENT, torch.Generator().manual_seed(5))
    assert torch.equal(noise, process.draw(LATENT, torch.Generator().manual_seed(5))[0])
    batch = (LATENT[None], noise[None], time[None])
    assert torch.equal(even.noisy(*batch), process.noisy(*batch))
    prediction = torch.ones_like(batch[0])
    assert torch.equal(even.losses(prediction, *batch), process.losses(prediction, *batch))


def test_another_seed_begins_elsewhere() -> None:
    process = PROCESSES["flow"]
    assert not torch.equal(times(Stratified.of(process, 0), 8), times(Stratified.of(process, 1), 8))
