"""A word of the subject's own acts where the subject is named, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import make_tiny_pipeline
from tiny_pipelines.flux import flux

from benchmarks.adapting import nothing
from benchmarks.own_word import with_own_word
from svfit_diffusion.families import PhotoSize, family_of

NAMED, UNNAMED = "a photo of sks dog", "a photo of a dog"


@pytest.fixture(params=["unet", "transformer"])
def parts(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A pipeline, and the name of its denoiser."""
    pipe = make_tiny_pipeline() if request.param == "unet" else flux()
    pipe.set_progress_bar_config(disable=True)
    return pipe, request.param


def drawn(pipe: Any, *prompts: str) -> np.ndarray:
    return pipe(
        list(prompts),
        num_inference_steps=2,
        guidance_scale=3.0,
        height=16,
        width=16,
        generator=[torch.Generator().manual_seed(0) for _ in prompts],
        output_type="np",
    ).images


def test_only_what_names_the_subject_changes(parts: tuple[Any, str], tmp_path: Path) -> None:
    pipe, component = parts
    model = getattr(pipe, component)
    before = drawn(pipe, NAMED, UNNAMED)
    adapted = with_own_word(nothing)({component: model}, 1)
    (vectors,) = adapted.parameters
    with adapted.attached(pipe):
        assert np.array_equal(drawn(pipe, NAMED, UNNAMED), before)
        torch.nn.init.normal_(vectors)
        trained = drawn(pipe, NAMED, UNNAMED)
        assert np.abs(trained[0] - before[0]).max() > 1e-4  # where nothing changes it is 0
        assert np.array_equal(trained[1], before[1])
    assert np.array_equal(drawn(pipe, NAMED, UNNAMED), before)
    adapted.save(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "own_word.safetensors")
    assert torch.equal(stored["own_word"], vectors)


def test_it_learns(parts: tuple[Any, str]) -> None:
    pipe, component = parts
    adapted = with_own_word(nothing)({component: getattr(pipe, component)}, 1)
    (vectors,) = adapted.parameters
    family = family_of(pipe)
    with adapted.attached(pipe):
        photo = torch.zeros(1, 3, 16, 16)
        noisy = torch.randn_like(family.scale_latents(family.encode_photo(photo)[0]))
        told, sizes = family.encode_prompts([NAMED]), [PhotoSize.whole(16, 16)]
        family.predict(noisy, torch.tensor([500.0]), told, sizes).square().sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad.norm(dim=-1) > 0).all()  # of every block that reads the text
