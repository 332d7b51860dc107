"""Models of the real architectures with random weights: no hub is needed.

Layers are initialised as PyTorch and transformers do, so singular values are those of fresh layers.
Seeds are fixed, so that processes which build the same model find its bases in the cache.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.base_model import share_weights
from benchmarks.adapting import Models
from benchmarks.report import ROOT

TOYBOX = ROOT / "samples" / "toybox"
PROMPT_LENGTH = 77


def sd15_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5, frozen."""
    torch.manual_seed(0)
    return _frozen(
        UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
    )


def clip_text_encoder(layers: int = 12) -> CLIPTextModel:
    """The text encoder of Stable Diffusion 1.5 (CLIP ViT-L/14), frozen; or fewer of its layers."""
    torch.manual_seed(1)
    return _frozen(
        CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=layers,
                num_attention_heads=12,
                projection_dim=768,
            )
        )
    )


def sd15_models(text_encoder: bool) -> Models:
    """The UNet of Stable Diffusion 1.5, and if wanted its text encoder."""
    models: Models = {"unet": sd15_unet()}
    if text_encoder:
        models["text_encoder"] = clip_text_encoder()
    return models


def sdxl_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion XL, frozen: 10.3 GB in float32."""
    torch.manual_seed(0)
    return _frozen(
        UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    )


def toybox_models() -> Models:
    """The UNet and the text encoder of the embedded base model, frozen."""
    pipe = toybox_pipeline()
    return {"unet": pipe.unet, "text_encoder": pipe.text_encoder}


def toybox_pipeline() -> Any:
    """The embedded base model, frozen and quiet."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = StableDiffusionPipeline.from_pretrained(
        TOYBOX, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.unet, pipe.text_encoder, pipe.vae):
        _frozen(model)
    return pipe


def small_vae(latent_channels: int = 4) -> AutoencoderKL:
    """The smallest autoencoder whose latents are an eighth as wide as pictures, frozen."""
    return _frozen(
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=8,
            latent_channels=latent_channels,
        )
    )


def bare_pipeline(unet: Any, text_encoder: nn.Module) -> Any:
    """A pipeline around a UNet and a text encoder, with the smallest of everything else."""
    torch.manual_seed(2)
    pipe = StableDiffusionPipeline(
        vae=small_vae(),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(TOYBOX / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sharing_weights(models: Models) -> Models:
    """Copies of models that are changed apart and yet share the weights' memory.

    Many methods thus stand side by side for the memory of one.
    """
    return {component: share_weights(model) for component, model in models.items()}


def unet_inputs(
    unet: Any, rows: int, latent_size: int, device: str, length: int = PROMPT_LENGTH
) -> dict[str, Any]:
    """Arguments of a call of a UNet, in its precision: noise, timesteps and random embeddings.

    Args:
        unet: whose configuration decides widths.
        rows: in the batch.
        latent_size: side of the latents; the image's is 8 times that, Toybox's 4 times.
        device: where to.
        length: of the prompts, in tokens.
    """
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, unet.dtype)

    config = unet.config
    inputs: dict[str, Any] = {
        "sample": noise(rows, config.in_channels, latent_size, latent_size),
        "timestep": torch.randint(1000, (rows,), generator=generator).to(device),
        "encoder_hidden_states": noise(rows, length, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        # Six sizes of the image, each embedded; the rest is the pooled prompt.
        sizes = 6
        pooled = (
            config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        )
        inputs["added_cond_kwargs"] = {
            "text_embeds": noise(rows, pooled),
            "time_ids": torch.full((rows, sizes), 8 * latent_size, device=device).to(unet.dtype),
        }
    return inputs


def on_device(models: Models, device: str) -> Models:
    """The same models, moved."""
    return {component: model.to(device) for component, model in models.items()}


def for_inference(models: Models, device: str) -> Models:
    """The same models, moved, and on a GPU in float16, as pipelines are usually loaded."""
    moved = on_device(models, device)
    if device == "cuda":
        for model in moved.values():
            model.half()
    return moved


def _frozen(model: Any) -> Any:
    return model.requires_grad_(False)
