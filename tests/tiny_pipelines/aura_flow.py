"""A tiny AuraFlow."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen, umt5, vae


def aura_flow(seed: int = 0) -> AuraFlowPipeline:
    """AuraFlow."""
    torch.manual_seed(seed)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    # A few words must count among so much padding.
    for name, parameter in transformer.named_parameters():
        if name.endswith(("add_k_proj.weight", "add_v_proj.weight")):
            nn.init.normal_(parameter)
    return AuraFlowPipeline(
        tokenizer=byte_tokenizer(ends=True),
        text_encoder=umt5(seed + 2),
        vae=vae(seed + 1, scaling_factor=0.13),
        transformer=frozen(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
