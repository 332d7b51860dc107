"""A tiny HiDream-I1."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)
from tiny import make_tiny_tokenizer
from torch import nn

from tiny_pipelines.language_models import llama
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, clip, frozen, t5, vae


def hidream(seed: int = 0) -> HiDreamImagePipeline:
    """HiDream-I1, which draws 16×16 pixels or another shape of about that area."""
    torch.manual_seed(seed)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
        text_emb_dim=2 * TEXT_WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("gate.weight"):  # left as whatever was in memory
            nn.init.normal_(parameter)
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(seed + 1, shift_factor=0.11, scaling_factor=0.36),
        text_encoder=clip(seed + 2, length=128),
        tokenizer=make_tiny_tokenizer(),
        text_encoder_2=clip(seed + 3, length=128),
        tokenizer_2=make_tiny_tokenizer(),
        text_encoder_3=t5(seed + 4),
        tokenizer_3=byte_tokenizer(ends=True),
        text_encoder_4=llama(seed + 5),
        tokenizer_4=byte_tokenizer(begins=True),
        transformer=frozen(transformer),
    )
    pipe.default_sample_size = 8
    return pipe
