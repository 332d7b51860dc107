"""Noise processes against formulas written out, and against today's objective."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from first_objective import Batch, Objective
from torch import Tensor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import NoiseSettings, PhotoSize, family_of
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.families.flow import Flow, scheduler_timesteps

TYPES = ("epsilon", "v_prediction")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def three(seed: int) -> Tensor:
    return torch.randn(3, 4, 2, 2, generator=generator(seed))


def flow(scheme: str = "none", scheduler: Any = None, **settings: float) -> Flow:
    chosen = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Flow.of(chosen, NoiseSettings(weighting_scheme=scheme, **settings))


def drawn(process: Flow | Diffusion, count: int = 4000) -> Tensor:
    source, latent = generator(), torch.zeros(1, 1, 1)
    return torch.stack([process.draw(latent, source)[1] for _ in range(count)])


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize(("gamma", "offset"), [(None, 0.0), (5.0, 0.0), (None, 0.1), (5.0, 0.1)])
def test_diffusion_is_todays_objective_bit_for_bit(
    prediction_type: str, gamma: float | None, offset: float
) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear")
    process = Diffusion.of(scheduler, NoiseSettings(snr_gamma=gamma, noise_offset=offset))
    objective = Objective(DDPMScheduler.from_config(scheduler.config), gamma, offset)
    x, guess = three(0), three(1)
    draws = [process.draw(latent, generator(i)) for i, latent in enumerate(x)]
    for i, (noise, time) in enumerate(draws):
        wanted_noise, wanted_time = objective.draw(x[i], generator(i))
        assert torch.equal(noise, wanted_noise)
        assert torch.equal(time, wanted_time)
        assert time.dtype == wanted_time.dtype
    noise, time = (torch.stack(parts) for parts in zip(*draws, strict=True))
    assert torch.equal(process.noisy(x, noise, time), objective.noisy(x, noise, time))
    losses = process.losses(guess, x, noise, time)
    assert torch.equal(losses, objective.losses(guess, x, noise, time))


@pytest.mark.parametrize("name", ["sd", "sd_v"])
def test_a_step_of_stable_diffusion_is_todays_bit_for_bit(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    family, scheduler = family_of(pipe), DDPMScheduler.from_config(pipe.scheduler.config)
    process = family.noise_process(NoiseSettings(snr_gamma=5.0))
    pixels = torch.rand(2, 3, 16, 16, generator=generator()) * 2 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels).latent_dist
    mean, std = family.encode_photo(pixels)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(std, posterior.std)
    latents = family.scale_latents(mean)
    assert torch.equal(latents, mean * pipe.vae.config.scaling_factor)
    noise, time = torch.randn(latents.shape, generator=generator()), torch.tensor([3, 800])
    text, _ = pipe.encode_prompt(["a dog", "a cat"], "cpu", 1, do_classifier_free_guidance=False)
    conditions = family.encode_prompts(["a dog", "a cat"])
    noisy = process.noisy(latents, noise, time)
    sizes = [PhotoSize.whole(16, 16)] * 2
    losses = process.losses(family.predict(noisy, time, conditions, sizes), latents, noise, time)
    batch = Batch(latents, noise, time, text)
    assert torch.equal(losses, Objective(scheduler, 5.0).batch_losses(pipe.unet, batch))


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_losses_of_diffusion(prediction_type: str, gamma: float | None) -> None:
    process = Diffusion(DDPMScheduler(prediction_type=prediction_type), gamma)
    x, noise, guess = three(0), three(1), three(2)
    time = torch.tensor([10, 500, 990])
    alpha = process.scheduler.alphas_cumprod[time].double()
    a, s = alpha.sqrt().view(3, 1, 1, 1), (1 - alpha).sqrt().view(3, 1, 1, 1)
    torch.testing.assert_close(process.noisy(x, noise, time).double(), a * x + s * noise)
    wanted = noise if prediction_type == "epsilon" else a * noise - s * x
    expected = (guess - wanted).square().mean(dim=(1, 2, 3))
    if gamma is not None:
        snr = alpha / (1 - alpha)
        divisor = snr if prediction_type == "epsilon" else snr + 1
        expected = expected * snr.clamp(max=gamma) / divisor
    # float32 against float64, over sums of 16 squares
    torch.testing.assert_close(
        process.losses(guess, x, noise, time).double(), expected.double(), rtol=1e-4, atol=1e-6
    )


def test_noise_offset_shifts_channels() -> None:
    latent = torch.zeros(4, 32, 32)
    plain, _ = Diffusion(DDPMScheduler()).draw(latent, generator())
    shifted, _ = Diffusion(DDPMScheduler(), noise_offset=10.0).draw(latent, generator())
    difference = shifted - plain
    assert difference.std(dim=(1, 2)).max() < 1e-5
    assert difference.mean(dim=(1, 2)).abs().min() > 0.1


def test_flow_is_a_straight_line_whose_velocity_is_the_target() -> None:
    process, x, noise = flow(), three(0), three(1)
    time = torch.tensor([0.25, 0.5, 0.875])  # exact in float32
    noisy = process.noisy(x, noise, time)
    torch.testing.assert_close(noisy[0], 0.75 * x[0] + 0.25 * noise[0])
    further = process.noisy(x, noise, time + 0.125)
    velocity = (further - noisy) / 0.125
    torch.testing.assert_close(velocity, process.target(x, noise, time), rtol=1e-4, atol=1e-5)
    assert process.losses(velocity, x, noise, time).max() < 1e-8


@pytest.mark.parametrize(("shift", "dynamic"), [(1.0, False), (3.0, False), (3.0, True)])
def test_flow_draws_from_the_grid_of_the_scheduler(shift: float, dynamic: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    wanted = scheduler.sigmas.clone()
    # What a pipeline has drawn with its scheduler must not matter.
    scheduler.set_timesteps(7, **({"mu": 1.0} if dynamic else {}))
    process = flow(scheduler=scheduler)
    assert torch.equal(process.sigmas, wanted)
    times = drawn(process)
    assert torch.isin(times, wanted).all()
    middle = shift * 0.5 / (1 + (shift - 1) * 0.5) if not dynamic else 0.5
    # The median of 4000 draws is within 0.05 of its place with near certainty.
    assert abs(times.median() - middle) < 0.05
    assert times.min() < 0.05 * shift
    assert times.max() > 0.95


def test_solvers_of_flows_have_their_own_name_for_the_shift() -> None:
    solver = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    wanted = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas
    assert torch.equal(flow(scheduler=solver).sigmas, wanted)
    sigma = torch.tensor([0.9999, 0.5002])
    assert scheduler_timesteps(solver, sigma).tolist() == [999, 500]
    euler = FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(scheduler_timesteps(euler, sigma), torch.tensor([999.9, 500.2]))


def test_densities() -> None:
    uniform = FlowMatchEulerDiscreteScheduler()
    # The grid falls, so a place u on it is the time 1 − u.
    logit = drawn(flow("logit_normal", uniform, logit_mean=1.0, logit_std=0.5))
    assert abs(logit.median() - 1 / (1 + math.e)) < 0.03
    narrow = drawn(flow("logit_normal", uniform, logit_mean=0.0, logit_std=0.01))
    assert (narrow - 0.5).abs().max() < 0.02
    spread = drawn(flow("mode", uniform, mode_scale=1.29)).std()
    assert spread < drawn(flow("none", uniform)).std() - 0.02


def test_a_density_that_reaches_one_stays_on_the_grid() -> None:
    process = flow("logit_normal", logit_mean=100.0, logit_std=1e-3)  # a sigmoid of 1.0
    assert torch.equal(drawn(process, 3), process.sigmas[-1].expand(3))


def test_weights_of_errors() -> None:
    time, ones = torch.tensor([0.1, 0.5, 1.0]), torch.ones(3)
    assert torch.equal(flow("logit_normal").weigh(ones, time), ones)
    torch.testing.assert_close(flow("sigma_sqrt").weigh(ones, time), time**-2)
    cosmap = 2 / (math.pi * (1 - 2 * time + 2 * time**2))
    torch.testing.assert_close(flow("cosmap").weigh(ones, time), cosmap)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(prediction_type="sample"), "'sample' with a DDIMScheduler"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
        # It says ε, and means something else.
        (EDMEulerScheduler(prediction_type="epsilon"), "EDMEulerScheduler"),
    ],
)
def test_diffusion_refuses_other_schedulers(scheduler: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Diffusion.of(scheduler, NoiseSettings())


def test_flow_refuses_other_schedulers() -> None:
    with pytest.raises(ConfigError, match="its scheduler is a EulerDiscreteScheduler"):
        flow(scheduler=EulerDiscreteScheduler())


def test_settings_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="weighting_scheme 'mode' is for flow matching"):
        Diffusion.of(DDIMScheduler(), NoiseSettings(weighting_scheme="mode"))
    for settings in ({"snr_gamma": 5.0}, {"noise_offset": 0.1}):
        with pytest.raises(ConfigError, match="snr_gamma and noise_offset are for"):
            flow(**settings)
    with pytest.raises(ConfigError, match="unknown weighting_scheme 'cosine'; use one of none"):
        NoiseSettings(weighting_scheme="cosine")


def test_a_family_has_its_own_density_unless_told_otherwise() -> None:
    family = family_of(tiny_pipelines.build("sd3"))
    own, told = NoiseSettings(), NoiseSettings(weighting_scheme="mode")
    assert family.noise_process(own).settings.weighting_scheme == "logit_normal"
    assert family.noise_process(told).settings.weighting_scheme == "mode"
