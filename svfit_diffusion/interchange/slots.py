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
        sdxl = is_sdxl(denoiser)
        own = sgm_path(path, denoiser.config["layers_per_block"]) if sdxl else path
        slot = Slot(denoiser_name(own)) if own else None
    else:
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


_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}


def sgm_path(path: str, layers_per_block: int) -> str | None:
    """A path of a UNet of Stable Diffusion in the code that it was published with (ldm, sgm).

    Args:
        path: of the layer in diffusers.
        layers_per_block: of the UNet's configuration.

    Returns:
        The path, if it is known; of an `upsamplers` one as beside attention.
    """
    if path in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[path]
    match = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|mid_block)"
        r"\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)",
        path,
    )
    if match is None:
        return None
    side, block, kind, index, rest = match.groups()
    rest = _RESNET.get(rest, rest) if kind == "resnets" else rest
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{rest}"
    # Blocks are counted through, with one for each resnet, or for the halving at a level's end.
    step, i, j = layers_per_block + 1, int(block), int(index)
    if kind == "downsamplers":
        return f"input_blocks.{step * (i + 1)}.0.op"
    place = 1 if kind == "attentions" else 0
    if side == "down":
        return f"input_blocks.{step * i + j + 1}.{place}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{step * i + step - 1}.2.{rest}"
    return f"output_blocks.{step * i + j}.{place}.{rest}"
