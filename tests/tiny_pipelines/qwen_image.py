"""Tiny pipelines with the autoencoder of Qwen-Image: it, and Krea 2."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from tiny_pipelines.language_models import qwen2_5_vl, qwen3_vl
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen


def qwen_vae(seed: int) -> AutoencoderKLQwenImage:
    """An autoencoder of four channels that halves each side."""
    torch.manual_seed(seed)
    made = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    return frozen(made)


def qwen_image(seed: int = 0) -> QwenImagePipeline:
    """Qwen-Image."""
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02
        ),
        vae=qwen_vae(seed + 1),
        text_encoder=qwen2_5_vl(seed + 2),
        tokenizer=byte_tokenizer(),
        transformer=frozen(transformer),
    )


def krea2(seed: int = 0) -> Krea2Pipeline:
    """Krea 2, the base model."""
    torch.manual_seed(seed)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=TEXT_WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=qwen_vae(seed + 1),
        text_encoder=qwen3_vl(seed + 2, layers=3),
        tokenizer=byte_tokenizer(),
        transformer=frozen(transformer),
        text_encoder_select_layers=(2, 3),
    )
