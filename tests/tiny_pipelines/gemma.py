"""Tiny pipelines whose prompts Gemma 2 encodes: Sana and Lumina 2."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tiny_pipelines.language_models import gemma2
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen, vae


def _deep_vae(seed: int) -> AutoencoderDC:
    """Of thirty-seconds, as Sana's pipeline counts on."""
    torch.manual_seed(seed)
    levels = 6
    made = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=(*("ResBlock",) * (levels - 1), "EfficientViTBlock"),
        decoder_block_types=(*("ResBlock",) * (levels - 1), "EfficientViTBlock"),
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels,
        encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels,
        scaling_factor=0.41,
    )
    return frozen(made)


def sana(seed: int = 0) -> SanaPipeline:
    """Sana."""
    torch.manual_seed(seed)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
    )
    return SanaPipeline(
        tokenizer=byte_tokenizer(begins=True),
        text_encoder=gemma2(seed + 2),
        vae=_deep_vae(seed + 1),
        transformer=frozen(transformer),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def lumina2(seed: int = 0) -> Lumina2Pipeline:
    """Lumina Image 2.0, whose pipeline counts on an autoencoder of eighths."""
    torch.manual_seed(seed)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(512, 64, 64),
        cap_feat_dim=TEXT_WIDTH,
    )
    return Lumina2Pipeline(
        transformer=frozen(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(seed + 1, levels=4, shift_factor=0.11, scaling_factor=0.36),
        text_encoder=gemma2(seed + 2),
        tokenizer=byte_tokenizer(begins=True),
    )
