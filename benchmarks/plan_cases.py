"""Bases whose plans are measured: pipelines with one real model and the smallest of all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import T5Config, T5EncoderModel

from benchmarks.architectures import (
    bare_pipeline,
    clip_text_encoder,
    sd15_unet,
    small_vae,
    toybox_pipeline,
)
from benchmarks.plans import tokenizer


@dataclass(frozen=True)
class Case:
    """A base.

    Attributes:
        build: its pipeline, frozen.
        resolution: sides of its pictures in pixels.
        settings: of trainings.
    """

    build: Callable[[], Any]
    resolution: int
    settings: dict[str, Any] = field(default_factory=dict)


def _sd15() -> Any:
    """A pipeline around an SD 1.5-shaped UNet."""
    pipe = bare_pipeline(sd15_unet(), clip_text_encoder(layers=1))
    pipe.register_modules(tokenizer=tokenizer(77))
    return pipe


def _flux() -> Any:
    """A pipeline around a double and two single blocks of FLUX.1 dev's width of 3072."""
    torch.manual_seed(0)
    words = tokenizer(128)
    t5 = T5Config(d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=1, vocab_size=len(words))
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=small_vae(latent_channels=16),
        text_encoder=clip_text_encoder(layers=1),
        tokenizer=tokenizer(77),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=words,
        transformer=FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=True),
    )
    pipe.transformer.requires_grad_(False)
    return pipe


CASES = {
    "Toybox": Case(toybox_pipeline, 64),
    "SD 1.5 UNet": Case(_sd15, 256, {"train_text_encoder": False}),
    "FLUX.1 transformer of 3 blocks": Case(_flux, 256),
}
