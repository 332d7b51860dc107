"""A family against its pipeline: arguments, prediction, target, latents."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tiny_pipelines
import torch
from cases import CASES
from diffusers import DDIMScheduler
from oracle import (
    PROMPTS,
    SIMILAR_PROMPTS,
    Case,
    assert_same,
    call,
    image_size,
    later_steps,
    random_latents,
    recorded_calls,
)
from torch import Tensor

from svfit_diffusion.families import Conditions, Family, NoiseSettings, PhotoSize, family_of
from svfit_diffusion.families.flow import Flow

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def made(case: Case, dtype: torch.dtype = torch.float32) -> Family:
    return family_of(tiny_pipelines.build(case.name).to(dtype))


def test_every_tiny_pipeline_is_tested() -> None:
    assert {case.name for case in CASES} == set(tiny_pipelines.BUILDERS)


@every_case
@pytest.mark.parametrize(
    ("prompts", "dtype"),
    [
        (PROMPTS, torch.float32),
        (PROMPTS, torch.bfloat16),  # shows where it is rounded
        (SIMILAR_PROMPTS, torch.float32),
    ],
    ids=["float32", "bfloat16", "similar"],
)
@torch.no_grad()
def test_the_denoiser_gets_what_the_pipeline_gives_it(
    case: Case, prompts: list[str], dtype: torch.dtype
) -> None:
    family = made(case, dtype)
    family.check()
    latents = random_latents(family, case, 1)
    given = list(prompts)
    conditions = family.encode_prompts(given)
    assert given == prompts  # some pipelines write into their list
    sizes = [PhotoSize.whole(*image_size(family, case))] * 2
    for step in later_steps(family, case, latents, prompts):
        with recorded_calls(family.model) as calls:
            prediction = family.predict(latents, step.time.expand(2), conditions, sizes)
        (arguments,) = calls
        for name in set(arguments) - {"return_dict"}:
            assert_same(arguments[name], step.arguments[name], name)
        assert prediction.shape == latents.shape
        assert prediction.float().std() > 0
        assert_same(case.pack(family.pipe, prediction).float(), step.output.float(), "prediction")


@every_case
def test_the_target_leads_the_scheduler_back_to_the_image(case: Case) -> None:
    family = made(case)
    process = family.noise_process(NoiseSettings())
    x, noise = random_latents(family, case, 1), random_latents(family, case, 2)
    scheduler = family.pipe.scheduler
    if isinstance(scheduler, DDIMScheduler):
        scheduler.set_timesteps(10)
        time = scheduler.timesteps[3]
        noisy = process.noisy(x, noise, time.expand(2))
        target = process.target(x, noise, time.expand(2))
        back = scheduler.step(target, time, noisy).pred_original_sample
    else:
        shifted = {"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(5, **shifted)
        for timestep in scheduler.timesteps[:-1]:  # a scheduler counts its steps
            scheduler.step(x, timestep, x)
        last = scheduler.timesteps[-1]  # leads to the image itself
        time = (scheduler.sigmas[-2] if isinstance(process, Flow) else last).expand(2)
        noisy = process.noisy(x, noise, time)
        back = scheduler.step(process.target(x, noise, time), last, noisy).prev_sample
    assert not torch.allclose(noisy, x, atol=1e-3)
    # float32 rounding, which a division by √ᾱ enlarges
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


@every_case
def test_latents_decode_to_what_was_encoded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    family = made(case)
    vae = family.pipe.vae
    pixels = torch.rand(2, 3, *image_size(family, case), generator=torch.Generator().manual_seed(0))
    mean, std = family.encode_photo(2 * pixels - 1)
    decoded: list[Tensor] = []
    decode = vae.decode

    def recorded(latents: Tensor, **kwargs: Any) -> Any:
        decoded.append(latents)
        return decode(latents, **kwargs)

    monkeypatch.setattr(vae, "decode", recorded)
    call(family, case, family.scale_latents(mean), 2, PROMPTS)
    (latents,) = decoded
    # Scaled there and back in float32.
    torch.testing.assert_close(latents.reshape(mean.shape), mean, rtol=1e-4, atol=1e-5)
    assert mean.std() > 0.01
    assert (std.min() > 0) if case.drawn else not std.any()


@every_case
def test_photos_are_encoded_in_float32_whatever_the_precision(case: Case) -> None:
    family = made(case, torch.bfloat16)
    vae = family.pipe.vae
    pixels = torch.rand(1, 3, *image_size(family, case), generator=torch.Generator().manual_seed(0))
    mean, _ = family.encode_photo(pixels)
    assert vae.dtype == torch.bfloat16
    vae.float()
    assert torch.equal(family.encode_photo(pixels)[0], mean)


@every_case
@torch.no_grad()
def test_conditions_of_single_prompts_make_up_a_batch(case: Case) -> None:
    family = made(case)
    latents = random_latents(family, case, 1)
    sizes = [PhotoSize.whole(*image_size(family, case))] * 2
    process = family.noise_process(NoiseSettings())
    _, time = process.draw(latents[0], torch.Generator().manual_seed(0))

    def predicted(conditions: Conditions) -> Tensor:
        return family.predict(latents, time.expand(2), conditions, sizes)

    single = Conditions.cat([family.encode_prompts([prompt]) for prompt in PROMPTS])
    assert len(single) == 2
    together = family.encode_prompts(list(PROMPTS))
    # Sums in another order.
    torch.testing.assert_close(predicted(single), predicted(together), rtol=1e-4, atol=1e-4)
    swapped = predicted(single.select([1, 0]))
    assert not torch.allclose(swapped, predicted(together), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        swapped, predicted(family.encode_prompts(PROMPTS[::-1])), rtol=1e-4, atol=1e-4
    )


@every_case
def test_gradients_reach_every_text_encoder(case: Case) -> None:
    family = made(case)
    encoders = family.encoders.values()
    for encoder in encoders:
        encoder.requires_grad_(True)
    conditions = family.encode_prompts(list(PROMPTS))
    latents = random_latents(family, case, 1)
    process = family.noise_process(NoiseSettings())
    time = process.draw(latents[0], torch.Generator().manual_seed(0))[1].expand(2)
    sizes = [PhotoSize.whole(*image_size(family, case))] * 2
    family.predict(latents, time, conditions, sizes).square().mean().backward()
    for encoder in encoders:
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


@every_case
def test_prompts_are_encoded_as_for_drawing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where drawing and encoding have other defaults, drawing's are given."""
    family = made(case)
    encode, drawing = family.pipe.encode_prompt, inspect.signature(family.pipe.__call__).parameters
    signature, given = inspect.signature(encode), {}

    def recorded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given.update(bound.arguments)
        return encode(*args, **kwargs)

    monkeypatch.setattr(family.pipe, "encode_prompt", recorded)
    family.encode_prompts(list(PROMPTS))
    always = family.sampling.always
    for name in set(given) & set(drawing) - {"prompt", "kwargs"}:
        wanted = always.get(name, drawing[name].default)
        assert given[name] == wanted or (not given[name] and not wanted), name


@every_case
def test_guidance_guides(case: Case) -> None:
    family = made(case)
    size = image_size(family, case)

    def drawn(scale: float) -> Tensor:
        return family.pipe(
            prompt="a dog",
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **family.generation_arguments(size, 2, scale),
        ).images

    usual = family.sampling.guidance_scale
    assert torch.equal(drawn(usual), drawn(usual + 3)) == (case.name == "flux_schnell")


@every_case
def test_it_draws(case: Case) -> None:
    family = made(case)
    height, width = image_size(family, case)
    arguments = family.generation_arguments((height, width), steps=2)
    images = family.pipe(prompt=list(PROMPTS), output_type="pt", **arguments).images
    assert images.shape == (2, 3, height, width)
    assert images.isfinite().all()
