"""Tiny PixArts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)

from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen, t5, vae


def _parts(seed: int, sample_size: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        # Enough for embeddings of three numbers that describe the shape.
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=sample_size,
        caption_channels=TEXT_WIDTH,
    )
    return {
        "tokenizer": byte_tokenizer(ends=True),
        "text_encoder": t5(seed + 2),
        "vae": vae(seed + 1, scaling_factor=0.13),
        "transformer": frozen(transformer),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def pixart_sigma(seed: int = 0) -> PixArtSigmaPipeline:
    """PixArt-Σ."""
    return PixArtSigmaPipeline(**_parts(seed, sample_size=8))


def pixart_alpha(seed: int = 0) -> PixArtAlphaPipeline:
    """PixArt-α of 1024 pixels, by its configuration."""
    return PixArtAlphaPipeline(**_parts(seed, sample_size=128))
