"""FLUX.1 Kontext with an image to edit, against its pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_pipelines
import torch
from cases import CASES
from oracle import PROMPTS, assert_same, image_size, random_latents, recorded_calls

from svfit_diffusion.families import NoiseSettings, PhotoSize, family_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_denoiser_is_shown_the_image_to_edit_as_the_pipeline_shows_it(
    dtype: torch.dtype,
) -> None:
    (case,) = [case for case in CASES if case.name == "flux_kontext"]
    family = family_of(tiny_pipelines.build("flux_kontext").to(dtype))
    pipe, size = family.pipe, image_size(family, case)
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    latents = random_latents(family, case, 1)
    handed: list[Any] = []

    def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any) -> Any:
        handed.append(output)
        return (pipe._pack_latents(latents, *latents.shape).to(sample.dtype),)

    with pytest.MonkeyPatch.context() as patch, recorded_calls(family.model) as calls:
        patch.setattr(pipe.scheduler, "step", step)
        # Given as latents, since photos are encoded in float32 whatever the precision.
        mean, std = family.encode_photo(2 * pixels - 1)
        pipe(
            image=family.scale_latents(mean).to(dtype),
            prompt=list(PROMPTS),
            output_type="latent",
            _auto_resize=False,
            **family.generation_arguments(size, 3, 3.5),
        )
    reference = family.scale_latents(mean)[0]
    conditions = family.encode_prompts(list(PROMPTS)).with_references([reference] * 2)
    time = pipe.scheduler.sigmas[1].expand(2)
    with recorded_calls(family.model) as own:
        prediction = family.predict(latents, time, conditions, [PhotoSize.whole(*size)] * 2)
    for name in set(own[0]) - {"return_dict"}:
        assert_same(own[0][name], calls[1][name], name)
    wanted = handed[1][:, : handed[1].shape[1]]
    assert_same(pipe._pack_latents(prediction, *latents.shape).float(), wanted.float(), "output")
    assert std.shape == mean.shape


@torch.no_grad()
def test_the_image_to_edit_matters_and_is_selected_with_its_prompt() -> None:
    family = family_of(tiny_pipelines.build("flux_kontext"))
    (case,) = [case for case in CASES if case.name == "flux_kontext"]
    latents = random_latents(family, case, 1)
    images = [*random_latents(family, case, 2)]
    sizes = [PhotoSize.whole(*image_size(family, case))] * 2
    _, time = family.noise_process(NoiseSettings()).draw(latents[0], torch.Generator())

    def predicted(conditions: Any) -> torch.Tensor:
        return family.predict(latents, time.expand(2), conditions, sizes)

    plain = family.encode_prompts(list(PROMPTS))
    told = plain.with_references(images)
    assert not torch.allclose(predicted(told), predicted(plain), atol=1e-3)
    turned = plain.with_references(images[::-1])
    assert not torch.allclose(predicted(turned), predicted(told), atol=1e-3)
    again = told.select([1, 0]).select([1, 0])
    assert torch.equal(predicted(again), predicted(told))
