"""Tiny FLUX.2 pipelines."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import nn

from tiny_pipelines.language_models import mistral3, qwen3_lm
from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, frozen


def _transformer(seed: int, guidance_embeds: bool) -> Flux2Transformer2DModel:
    torch.manual_seed(seed)
    made = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return frozen(made)


def flux2_vae(seed: int) -> AutoencoderKLFlux2:
    """An autoencoder of four channels that halves each side, with statistics."""
    torch.manual_seed(seed)
    made = AutoencoderKLFlux2(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    # Statistics as training leaves them, not those of standard noise.
    nn.init.normal_(made.bn.running_mean)
    nn.init.uniform_(made.bn.running_var, 0.5, 4.0)
    return frozen(made)


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def flux2(seed: int = 0) -> Flux2Pipeline:
    """FLUX.2 dev."""
    return Flux2Pipeline(
        scheduler=_scheduler(),
        vae=flux2_vae(seed + 1),
        text_encoder=mistral3(seed + 2, layers=30),  # it looks into layers 10, 20 and 30
        tokenizer=byte_tokenizer(),
        transformer=_transformer(seed, guidance_embeds=True),
    )


def flux2_klein(seed: int = 0) -> Flux2KleinPipeline:
    """FLUX.2 klein, the base model."""
    return Flux2KleinPipeline(
        scheduler=_scheduler(),
        vae=flux2_vae(seed + 1),
        text_encoder=qwen3_lm(seed + 2, layers=27),  # it looks into layers 9, 18 and 27
        tokenizer=byte_tokenizer(),
        transformer=_transformer(seed, guidance_embeds=False),
    )
