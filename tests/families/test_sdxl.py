"""What only Stable Diffusion XL has: photo sizes, and latents with a mean."""

from __future__ import annotations

import tiny_pipelines
import torch
from oracle import PROMPTS, Case, image_size, later_steps, random_latents, recorded_calls

from svfit_diffusion.families import PhotoSize, family_of

CASE = Case("sdxl", {"guidance_scale": 1.0})


@torch.no_grad()
def test_each_photo_has_its_own_size() -> None:
    family = family_of(tiny_pipelines.build("sdxl"))
    latents, target = random_latents(family, CASE, 1), image_size(family, CASE)
    sizes = [PhotoSize((100, 200), (3, 5), target), PhotoSize.whole(*target)]
    steps = []
    for size in sizes:
        arguments = CASE.arguments | {
            "original_size": size.original,
            "crops_coords_top_left": size.top_left,
            "target_size": size.target,
        }
        steps.append(later_steps(family, Case("sdxl", arguments), latents)[0])
    with recorded_calls(family.model) as calls:
        conditions = family.encode_prompts(list(PROMPTS))
        family.predict(latents, steps[0].time.expand(2), conditions, sizes)
    ids = calls[0]["added_cond_kwargs"]["time_ids"]
    wanted = [step.arguments["added_cond_kwargs"]["time_ids"] for step in steps]
    assert torch.equal(ids[0], wanted[0][0])
    assert torch.equal(ids[1], wanted[1][1])
    assert not torch.equal(ids[0], ids[1])


def test_latents_with_mean_and_deviation() -> None:
    family = family_of(tiny_pipelines.build("sdxl"))
    config = family.pipe.vae.config
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 4.0, 0.5]
    family.pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    raw = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    scaled = family.scale_latents(raw)
    # As the pipeline undoes it.
    back = scaled * torch.tensor(std).view(1, 4, 1, 1) / config.scaling_factor
    torch.testing.assert_close(back + torch.tensor(mean).view(1, 4, 1, 1), raw)
