"""Tiny FLUX.1 pipelines, and those built like them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from tiny import make_tiny_text_encoder, make_tiny_tokenizer

from tiny_pipelines.language_models import qwen3
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen, t5, vae

# What the transformers have in common.
_TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def _common(seed: int) -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": vae(seed, shift_factor=0.11, scaling_factor=0.36),
    }


def _parts(seed: int, guidance_embeds: bool) -> dict[str, Any]:
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        **_TRANSFORMER, pooled_projection_dim=TEXT_WIDTH, guidance_embeds=guidance_embeds
    )
    return {
        **_common(seed),
        "transformer": frozen(transformer),
        "text_encoder": make_tiny_text_encoder(seed),
        "tokenizer": make_tiny_tokenizer(),
        "text_encoder_2": t5(seed + 1),
        "tokenizer_2": byte_tokenizer(ends=True),
    }


def flux(seed: int = 0) -> FluxPipeline:
    """FLUX.1 dev."""
    return FluxPipeline(**_parts(seed, guidance_embeds=True))


def flux_schnell(seed: int = 0) -> FluxPipeline:
    """FLUX.1 schnell, which has no guidance embedding and no shift by size."""
    parts = _parts(seed, guidance_embeds=False)
    return FluxPipeline(**parts | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})


def flux_kontext(seed: int = 0) -> FluxKontextPipeline:
    """FLUX.1 Kontext."""
    return FluxKontextPipeline(**_parts(seed, guidance_embeds=True))


def chroma(seed: int = 0) -> ChromaPipeline:
    """Chroma."""
    torch.manual_seed(seed)
    transformer = ChromaTransformer2DModel(
        **_TRANSFORMER,
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        **_common(seed + 1),
        text_encoder=t5(seed + 2),
        tokenizer=byte_tokenizer(ends=True),
        transformer=frozen(transformer),
    )


def ovis_image(seed: int = 0) -> OvisImagePipeline:
    """Ovis-Image."""
    torch.manual_seed(seed)
    transformer = OvisImageTransformer2DModel(**_TRANSFORMER, out_channels=16)
    return OvisImagePipeline(
        **_common(seed + 1),
        text_encoder=qwen3(seed + 2),
        tokenizer=byte_tokenizer(),
        transformer=frozen(transformer),
    )
