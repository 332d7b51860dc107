"""The tensors of a Stable Diffusion checkpoint in the layout that it was published in.

One file holds the UNet, the autoencoder and the text encoders under the names of `original_names`,
which ComfyUI, A1111, Forge, InvokeAI and diffusers' `from_single_file` read. The way back is
diffusers' own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.interchange.original_names import open_clip_path, unet_path, vae_path
from svfit_diffusion.interchange.slots import is_sdxl

_Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_FUSED = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


@dataclass(frozen=True)
class Part:
    """A model's place in a checkpoint.

    Attributes:
        component: of the pipeline.
        prefix: of its tensors' names.
        to_original: a state dict of the model as tensors in the file, named without the prefix.
        read: all tensors of the file as a state dict of the model, by diffusers.
    """

    component: str
    prefix: str
    to_original: _Convert
    read: _Convert


def parts_of(pipe: Any) -> list[Part]:
    """What a checkpoint of this pipeline's family holds.

    Raises:
        InterchangeError: the family has no such layout.
    """
    unet, vae = (_own(pipe, component) for component in ("unet", "vae"))
    encoder, encoder_2 = (_own(pipe, name) for name in ("text_encoder", "text_encoder_2"))
    clips = (CLIPTextModel, CLIPTextModelWithProjection)
    is_known = (
        type(unet) is UNet2DConditionModel
        and type(vae) is AutoencoderKL
        and isinstance(encoder, clips)
        and (isinstance(encoder_2, clips) if is_sdxl(unet) else encoder_2 is None)
    )
    if not is_known:
        raise InterchangeError(
            f"a {type(pipe).__name__} with these models has no checkpoint in one file that other "
            f"programs know; Stable Diffusion 1.x, 2.x and XL with their text encoders have, and "
            f"for others export_pipeline writes a folder"
        )
    if is_sdxl(unet):
        texts = [
            _clip("text_encoder", encoder, "conditioner.embedders.0.transformer."),
            _open_clip("text_encoder_2", encoder_2, "conditioner.embedders.1.model."),
        ]
    elif encoder.config.hidden_act == "gelu":  # OpenCLIP's, as Stable Diffusion 2 has it
        texts = [_open_clip("text_encoder", encoder, "cond_stage_model.model.")]
    else:
        texts = [_clip("text_encoder", encoder, "cond_stage_model.transformer.")]
    return [_unet(unet), _vae(vae), *texts]


def _own(pipe: Any, component: str) -> Any:
    model = getattr(pipe, component, None)
    return getattr(model, "_orig_mod", model)


def _unet(unet: Any) -> Part:
    def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            _renamed(n, lambda path: unet_path(path, unet.config)): t for n, t in tensors.items()
        }

    read = partial(convert_ldm_unet_checkpoint, config=unet.config)
    return Part("unet", "model.diffusion_model.", to_original, read)


def _vae(vae: Any) -> Part:
    levels = len(vae.config["block_out_channels"])

    def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {_renamed(n, partial(vae_path, levels=levels)): t for n, t in tensors.items()}
        # Attention is made of convolutions there.
        return {n: t[:, :, None, None] if _is_linear(n, t) else t for n, t in named.items()}

    read = partial(convert_ldm_vae_checkpoint, config=vae.config)
    return Part("vae", "first_stage_model.", to_original, read)


def _is_linear(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.dim() == 2


def _clip(component: str, encoder: Any, prefix: str) -> Part:
    length = encoder.config.max_position_embeddings

    def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {_with_text_model(name): tensor for name, tensor in tensors.items()}
        # transformers does without since 4.31; some readers insist on it.
        positions = torch.arange(length)[None]
        return named | {"text_model.embeddings.position_ids": positions}

    def read(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {name: tensor for name, tensor in checkpoint.items() if name.startswith(prefix)}
        found = _as_in(encoder, convert_ldm_clip_checkpoint(own))
        return {n: t for n, t in found.items() if not n.endswith("position_ids")}

    return Part(component, prefix, to_original, read)


def _open_clip(component: str, encoder: Any, prefix: str) -> Part:
    def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        fused: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            name = name.removeprefix("text_model.")
            if name == "embeddings.position_embedding.weight":
                named["positional_embedding"] = tensor
            elif name == "text_projection.weight":
                named["text_projection"] = tensor.mT
            elif match := _FUSED.fullmatch(name):
                layer, part, kind = match.groups()
                whole = f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
                fused.setdefault(whole, {})[part] = tensor
            else:
                named[_renamed(name, partial(open_clip_path, component=component))] = tensor
        whole_ones = {n: torch.cat([parts[x] for x in "qkv"]) for n, parts in fused.items()}
        return named | whole_ones

    def read(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _as_in(encoder, convert_open_clip_checkpoint(encoder, checkpoint, prefix))

    return Part(component, prefix, to_original, read)


def _renamed(name: str, rename: Callable[[str], str]) -> str:
    path, _, kind = name.rpartition(".")
    return f"{rename(path)}.{kind}"


def _with_text_model(name: str) -> str:
    """The name of a CLIP's tensor with the level that transformers 5 has dropped in some."""
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _as_in(encoder: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that a CLIP of the installed transformers has for them."""
    own = {_with_text_model(name): name for name in encoder.state_dict()}
    return {own.get(name, name): tensor for name, tensor in tensors.items()}
