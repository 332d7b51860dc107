"""Kohya's names in full-size models, of rank 1 and without weights: diffusers finds every layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from accelerate import init_empty_weights
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from benchmarks.architectures import sdxl_unet
from svfit_diffusion.adapters.targets import attention_layers, shiftable_layers
from svfit_diffusion.interchange.layouts import Base, filled, kohya_tensors


def flux() -> Any:
    return FluxTransformer2DModel(guidance_embeds=True)


def klein() -> Any:
    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680
    )


def own_name(name: str) -> str:
    """The layer of a tensor; UNets' attention goes by diffusers' oldest names."""
    own = re.sub(r"[._]lora[._].*", "", name).replace(".processor.", ".")
    return f"{own}.0" if own.startswith("unet.") and own.endswith(".to_out") else own


@pytest.mark.parametrize(
    ("make", "pipeline", "layers_of"),
    [
        (sdxl_unet, StableDiffusionXLPipeline, shiftable_layers),
        (flux, FluxPipeline, attention_layers),
        (klein, Flux2KleinPipeline, attention_layers),
        (ZImageTransformer2DModel, ZImagePipeline, attention_layers),
    ],
)
def test_diffusers_finds_every_layer(
    make: Callable[[], Any], pipeline: Any, layers_of: Callable[[Any], dict[str, Any]]
) -> None:
    with init_empty_weights():
        model = make()
    component = "unet" if isinstance(model, UNet2DConditionModel) else "transformer"
    base = Base(model, {f"{component}.{p}": layer for p, layer in shiftable_layers(model).items()})
    groups = base.groups(f"{component}.{path}" for path in layers_of(model))
    changes = filled({}, base, [name for group in groups.values() for name in group])
    config = {"unet_config": model.config} if component == "unet" else {}
    read = pipeline.lora_state_dict(kohya_tensors(changes, base), **config)
    tensors = read[0] if isinstance(read, tuple) else read
    assert {own_name(name) for name in tensors} == set(changes)
