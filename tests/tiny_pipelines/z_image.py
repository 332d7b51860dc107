"""A tiny Z-Image."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import nn

from tiny_pipelines.language_models import qwen3
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen, vae


def z_image(seed: int = 0) -> ZImagePipeline:
    """Z-Image."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    # Left as whatever was in memory, for a checkpoint to fill.
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        nn.init.normal_(token, std=0.02)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(seed + 1, shift_factor=0.11, scaling_factor=0.36),
        text_encoder=qwen3(seed + 2),
        tokenizer=byte_tokenizer(),
        transformer=frozen(transformer),
    )
