"""Where other programs keep a layer: the names of kohya's LoRA files.

A name is the layer's path in the model's first implementation, with underscores. Where that has
query, key and value in one layer and diffusers has three, several layers share a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.interchange.fused_names import FUSED_NAMES, UNFUSED
from svfit_diffusion.interchange.original_names import unet_path

_CLIP = ("encoder.layers.", "text_model.", "text_projection")


@dataclass(frozen=True)
class Slot:
    """A layer's place in a kohya file.

    Attributes:
        name: of the module in the file, such as `lora_unet_mid_block_attentions_0_proj_in`.
        part: which of the layers fused under this name it is, from 0, in the order of their
            outputs.
        parts: how many are fused there.
    """

    name: str
    part: int = 0
    parts: int = 1


def is_sdxl(denoiser: Any) -> bool:
    """Whether a denoiser is the UNet of SDXL, which other programs name as its first code did."""
    return denoiser.config.get("addition_embed_type") == "text_time"


def slot_of(component: str, path: str, denoiser: Any) -> Slot:
    """The place of a layer.

    Args:
        component: of the pipeline.
        path: of the layer in its model.
        denoiser: of the pipeline.

    Raises:
        InterchangeError: the sheet has no name for it.
    """
    if component.startswith("text_encoder"):
        if not path.startswith(_CLIP):
            raise _unknown(component, path, denoiser)
        return Slot(_text_encoder_prefix(component, denoiser) + _underscored(with_text_model(path)))
    if type(denoiser).__name__ == "UNet2DConditionModel":
        own = unet_path(path, denoiser.config) if is_sdxl(denoiser) else path
        return Slot(denoiser_name(own))
    slot = transformer_slot(type(denoiser).__name__, path)
    if slot is None:
        raise _unknown(component, path, denoiser)
    return slot


def transformer_slot(kind: str, path: str) -> Slot | None:
    """The place of a layer of a transformer, by its class in diffusers; None if it has no name."""
    if kind in UNFUSED:
        return Slot(denoiser_name(path))
    rows = FUSED_NAMES.get(kind, ())
    for pattern, name, part in rows:
        if match := re.fullmatch(pattern, path):
            parts = sum(other == name for _, other, _ in rows)
            return Slot(denoiser_name(match.expand(name)), part, parts)
    return None


def denoiser_name(path: str) -> str:
    """The name of a layer of the model that draws, by its path in the model's first code."""
    return f"lora_unet_{_underscored(path)}"


def _unknown(component: str, path: str, denoiser: Any) -> InterchangeError:
    return InterchangeError(
        f"kohya's files have no known name for {component}.{path} beside a "
        f'{type(denoiser).__name__}; export with format="peft", or leave that layer out of the '
        f"target in training"
    )


def with_text_model(path: str) -> str:
    """A text encoder's path with the level that transformers 5 has dropped and files keep."""
    return f"text_model.{path}" if path.startswith("encoder.layers.") else path


def _text_encoder_prefix(component: str, denoiser: Any) -> str:
    if type(denoiser).__name__ == "UNet2DConditionModel" and not is_sdxl(denoiser):
        return "lora_te_"
    return f"lora_te{component.removeprefix('text_encoder').strip('_') or 1}_"


def _underscored(path: str) -> str:
    return path.replace(".", "_")
