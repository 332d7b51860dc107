"""A LoRA of an adapter draws the adapter's pictures, loaded by diffusers as any other LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import merged
import pytest
import tiny_pipelines
import torch
from safetensors import safe_open

from svfit_diffusion import SVFitConfig
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.families import family_of
from svfit_diffusion.files.adapter import Adapter, state_dict
from svfit_diffusion.interchange import export_lora

TOLERANCE = 0.01
"""Share of the adapter's effect on a picture: both float16 factors of a change are rounded by up to
5e-4 of themselves, which two steps of a network of random weights make more of.
"""


def adapter_of(pipe: Any, seed: int = 0, **config: Any) -> Adapter:
    """A random adapter of what diffusers loads LoRAs for, with zeros here and there."""
    models = {
        component: model
        for component, model in models_of(pipe).items()
        if component in ("unet", "transformer") or "CLIP" in type(model).__name__
    }
    adapter = merged.make_adapter(models, seed, SVFitConfig(**config), size=0.2)
    for number, delta in enumerate(d for own in adapter.deltas.values() for d in own.values()):
        delta[: number % 3] = 0.0  # so that exact ranks differ
    return replace(adapter, sketches={})


def draw(pipe: Any) -> torch.Tensor:
    arguments = family_of(pipe).generation_arguments((16, 16), steps=2)
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt="a dog", generator=generator, output_type="pt", **arguments).images


def by_adapter(pipe: Any, adapter: Adapter) -> torch.Tensor:
    pipe.load_svfit_weights(state_dict(adapter), "a", show_progress=False)
    picture = draw(pipe)
    pipe.unload_svfit_weights()
    return picture


@pytest.mark.parametrize(
    ("family", "layout", "target"),
    [
        ("sd", "auto", "all"),
        ("sd", "peft", "attention"),
        ("sdxl", "auto", "all"),
        ("sd3", "auto", "attention"),
        ("flux", "auto", "attention"),
        ("flux2_klein", "auto", "attention"),
        ("flux2_klein", "kohya", "attention"),
        ("qwen_image", "auto", "attention"),
        ("qwen_image", "kohya", "attention"),
        ("z_image", "auto", "attention"),
        ("z_image", "kohya", "attention"),
    ],
)
def test_an_exact_lora_draws_as_the_adapter(
    family: str, layout: Any, target: str, tmp_path: Path
) -> None:
    pipe = tiny_pipelines.build(family)
    adapter = adapter_of(pipe, target=target)
    base, expected = draw(pipe), by_adapter(pipe, adapter)
    written = export_lora(pipe, adapter, tmp_path / "x.safetensors", format=layout)
    assert torch.equal(draw(pipe), base)
    assert written.error == 0 and set(written.errors.values()) == {0.0}
    assert written.size == written.path.stat().st_size
    with safe_open(written.path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118

    pipe.load_lora_weights(written.path)
    effect = (expected - base).abs().max()
    assert effect > 1e-3
    assert (draw(pipe) - expected).abs().max() < TOLERANCE * effect
