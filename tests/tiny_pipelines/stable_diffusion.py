"""Tiny Stable Diffusions: UNets, and the transformers of the third."""

from __future__ import annotations

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tiny import make_tiny_pipeline, make_tiny_tokenizer, make_tiny_unet

from tiny_pipelines.parts import TEXT_WIDTH, byte_tokenizer, clip, frozen, t5, vae


def sd(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x."""
    return make_tiny_pipeline(seed)


def sd_v(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x, which predicts v."""
    pipe = make_tiny_pipeline(seed)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    return pipe


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL."""
    return StableDiffusionXLPipeline(
        vae=vae(seed, scaling_factor=0.13),
        text_encoder=clip(seed + 1),
        text_encoder_2=clip(seed + 2),
        tokenizer=make_tiny_tokenizer(),
        tokenizer_2=make_tiny_tokenizer(),
        unet=make_tiny_unet(
            seed,
            cross_attention_dim=2 * TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
        ),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )


def sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        # Wider than both CLIPs together, which are padded to it.
        joint_attention_dim=80,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=frozen(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(seed, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(seed + 1),
        tokenizer=make_tiny_tokenizer(),
        text_encoder_2=clip(seed + 2),
        tokenizer_2=make_tiny_tokenizer(),
        text_encoder_3=t5(seed + 3, width=80),
        tokenizer_3=byte_tokenizer(ends=True),
    )


def sd3_without_t5(seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 as it is loaded to save memory."""
    pipe = sd3(seed)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    return pipe
