"""A tiny Ideogram 4."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)

from tiny_pipelines.flux2 import flux2_vae
from tiny_pipelines.language_models import qwen3_vl
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen

_TAPPED_LAYERS = 13  # of 36, in the pipeline


def _transformer(seed: int) -> Ideogram4Transformer2DModel:
    torch.manual_seed(seed)
    made = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=_TAPPED_LAYERS * TEXT_WIDTH,
        mrope_section=(4, 2, 2),
    )
    return frozen(made)


def ideogram4(seed: int = 0) -> Ideogram4Pipeline:
    """Ideogram 4."""
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux2_vae(seed + 1),
        text_encoder=qwen3_vl(seed + 2, layers=36),
        tokenizer=byte_tokenizer(),
        transformer=_transformer(seed),
        unconditional_transformer=_transformer(seed + 3),
    )
