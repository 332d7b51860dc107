"""What only HiDream has: experts that pass gradients in training mode alone."""

from __future__ import annotations

import pytest
import tiny_pipelines
import torch
from torch import Tensor

from svfit_diffusion.families import Family, PhotoSize, family_of


def predicted(family: Family, latents: Tensor) -> Tensor:
    conditions = family.encode_prompts(["a dog"])
    size = PhotoSize.whole(2 * latents.shape[2], 2 * latents.shape[3])
    return family.predict(latents, torch.tensor([0.5]), conditions, [size])


@pytest.mark.parametrize("shape", [(8, 8), (6, 8)])  # square images go without padding
def test_training_mode_predicts_the_same(shape: tuple[int, int]) -> None:
    family = family_of(tiny_pipelines.build("hidream"))
    latents = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(0))
    drawn = predicted(family, latents)
    family.model.train()
    # Experts are summed in another order.
    torch.testing.assert_close(predicted(family, latents), drawn, rtol=1e-4, atol=1e-5)


def test_gradients_are_whole_in_training_mode_alone() -> None:
    family = family_of(tiny_pipelines.build("hidream"))
    assert family.needs_training_mode
    expert = family.model.double_stream_blocks[0].block.ff_i.experts[0].w1.weight
    family.model.requires_grad_(True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for training in (False, True):
        family.model.train(training).zero_grad()
        predicted(family, latents).square().sum().backward()
        gradients.append(expert.grad)
    assert gradients[0] is None  # else diffusers has mended it, and the flag can go
    assert gradients[1] is not None
    assert gradients[1].abs().max() > 0
