"""Small, deterministic models and pipelines made of configurations alone: nothing is downloaded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_SIZE = 8
IMAGE_SIZE = 2 * LATENT_SIZE
TEXT_WIDTH = 32
TEXT_LENGTH = 16


def make_tiny_unet(seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """A UNet with self- and cross-attention of width 64, frozen, in eval mode."""
    torch.manual_seed(seed)
    settings = {
        "sample_size": LATENT_SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return _frozen(UNet2DConditionModel(**settings | overrides))


def make_one_block_unet() -> UNet2DConditionModel:
    """The smallest UNet with attention, which compiles in little time."""
    return make_tiny_unet(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
    )


def make_tiny_text_encoder(seed: int = 0) -> CLIPTextModel:
    """A CLIP text encoder of two layers, frozen, in eval mode."""
    torch.manual_seed(seed + 1)
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    model = CLIPTextModel(config)
    # CLIP's initialisation makes queries and keys of 1e-2: too small to see a shift of them.
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            nn.init.normal_(parameter, std=TEXT_WIDTH**-0.5)
    return _frozen(model)


def make_tiny_vae(seed: int = 0) -> AutoencoderKL:
    """An autoencoder that halves each side, frozen, in eval mode."""
    torch.manual_seed(seed + 2)
    return _frozen(
        AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=IMAGE_SIZE,
        )
    )


def make_tiny_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes, each alone and at the end of a word."""
    # The byte-level alphabet of GPT-2 and CLIP: printable bytes stand for themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return CLIPTokenizer.from_pretrained(folder)


def make_tiny_pipeline(seed: int = 0, **unet_overrides: Any) -> StableDiffusionPipeline:
    """A text-to-image pipeline whose models come from `seed`; it makes 16×16 images."""
    pipe = StableDiffusionPipeline(
        vae=make_tiny_vae(seed),
        text_encoder=make_tiny_text_encoder(seed),
        tokenizer=make_tiny_tokenizer(),
        unet=make_tiny_unet(seed, **unet_overrides),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_tiny_consistency_pipeline() -> LatentConsistencyModelPipeline:
    """A pipeline that training does not know, and that takes no negative prompts."""
    parts = {**make_tiny_pipeline().components, "scheduler": LCMScheduler()}
    parts["unet"] = make_tiny_unet(time_cond_proj_dim=32)
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def save_without_weights(pipe: Any, folder: Path) -> Path:
    """Save a pipeline in `folder`, all of it but the weights, and return the folder."""
    pipe.save_pretrained(folder)
    for file in folder.rglob("*.safetensors*"):
        file.unlink()
    return folder


def save_tiny_pipeline(folder: Path, seed: int = 0) -> Path:
    """Save `make_tiny_pipeline(seed)` in `folder`, for `from_pretrained`, and return the folder."""
    make_tiny_pipeline(seed).save_pretrained(folder)
    return folder


def unet_inputs(dtype: torch.dtype = torch.float32, batch: int = 2, width: int = TEXT_WIDTH) -> Any:
    """Keyword arguments of a call of the UNet."""
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(batch, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)
    hidden = torch.randn(batch, TEXT_LENGTH, width, generator=generator)
    return {
        "sample": sample.to(dtype),
        "timestep": torch.tensor([500] * batch),
        "encoder_hidden_states": hidden.to(dtype),
    }


def run_unet(unet: nn.Module, **kwargs: Any) -> Tensor:
    """The UNet's output for fixed inputs of its dtype, without gradients."""
    dtype = next(unet.parameters()).dtype
    with torch.no_grad():
        return unet(**unet_inputs(dtype), **kwargs).sample


def run_text_encoder(text_encoder: nn.Module) -> Tensor:
    """The text encoder's hidden states of fixed tokens, without gradients."""
    tokens = torch.arange(2 * TEXT_LENGTH).reshape(2, TEXT_LENGTH) % 500
    with torch.no_grad():
        return text_encoder(tokens)[0]


def run_model(model: nn.Module) -> Tensor:
    """`run_unet` or `run_text_encoder`."""
    return (run_unet if isinstance(model, UNet2DConditionModel) else run_text_encoder)(model)


def run_pipeline(pipe: Any, **kwargs: Any) -> Tensor:
    """The image of a fixed prompt and seed, as a float tensor; two steps."""
    settings: dict[str, Any] = {
        "prompt": "a photo of a dog",
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "pt",
    }
    if isinstance(pipe, StableDiffusionPipeline):
        settings |= {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return pipe(**settings | kwargs).images


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)
