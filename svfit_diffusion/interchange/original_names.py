"""Where the code that Stable Diffusion was published with (LDM, later sgm) keeps a module.

Paths of diffusers in, paths of that code out, both without `.weight` and `.bias`.
"""

from __future__ import annotations

import re
from typing import Any

from svfit_diffusion.errors import InterchangeError

_UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)"
    r"\.(.+)"
)


def unet_path(path: str, config: Any) -> str:
    """A path of Stable Diffusion's UNet, any version, below `model.diffusion_model`.

    Args:
        path: in `UNet2DConditionModel`.
        config: of it.

    Raises:
        InterchangeError: that code has no such module.
    """
    if path in _UNET_OUTSIDE:
        return _UNET_OUTSIDE[path]
    match = _UNET_BLOCK.fullmatch(path)
    if match is None or not isinstance(config["layers_per_block"], int):
        raise _unknown("unet", path)
    side, block, kind, index, rest = match.groups()
    # Blocks are counted through, with one for each resnet, or for the halving at a level's end.
    step, i, j = config["layers_per_block"] + 1, int(block or 0), int(index)
    place = 1 if kind == "attentions" else 0
    if kind == "resnets":
        if rest not in _UNET_RESNET:
            raise _unknown("unet", path)
        rest = _UNET_RESNET[rest]
    if kind.endswith("samplers") and rest != "conv":
        raise _unknown("unet", path)
    if kind == "downsamplers":
        return f"input_blocks.{step * (i + 1)}.0.op"
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in config["up_block_types"][i] else 1
        return f"output_blocks.{step * i + step - 1}.{place}.conv"
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * j}.{rest}"
    if side == "down":
        return f"input_blocks.{step * i + j + 1}.{place}.{rest}"
    return f"output_blocks.{step * i + j}.{place}.{rest}"


_SIDE = r"(encoder|decoder)\."
_CONV = r"(norm1|conv1|norm2|conv2|nin_shortcut)"
_VAE = (
    (r"((?:post_)?quant_conv)", r"\1"),
    (_SIDE + r"(conv_in|conv_out)", r"\1.\2"),
    (_SIDE + r"conv_norm_out", r"\1.norm_out"),
    (_SIDE + r"mid_block\.attentions\.0\.group_norm", r"\1.mid.attn_1.norm"),
    (_SIDE + r"mid_block\.attentions\.0\.to_([qkv])", r"\1.mid.attn_1.\2"),
    (_SIDE + r"mid_block\.attentions\.0\.to_out\.0", r"\1.mid.attn_1.proj_out"),
    (_SIDE + r"mid_block\.resnets\.0\." + _CONV, r"\1.mid.block_1.\2"),
    (_SIDE + r"mid_block\.resnets\.1\." + _CONV, r"\1.mid.block_2.\2"),
    (_SIDE + r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\." + _CONV, r"\1.\2.\3.block.\4.\5"),
    (_SIDE + r"(down|up)_blocks\.(\d+)\.\2samplers\.0\.conv", r"\1.\2.\3.\2sample.conv"),
)


def vae_path(path: str, levels: int) -> str:
    """A path of Stable Diffusion's autoencoder, below `first_stage_model`.

    Args:
        path: in `AutoencoderKL`.
        levels: how many resolutions it has; that code counts the decoder's from the finest.

    Raises:
        InterchangeError: that code has no such module.
    """
    counted = re.sub(r"(?<=up_blocks\.)\d+", lambda found: str(levels - 1 - int(found[0])), path)
    for pattern, name in _VAE:
        if match := re.fullmatch(pattern, counted.replace("conv_shortcut", "nin_shortcut")):
            return match.expand(name)
    raise _unknown("vae", path)


_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_path(path: str, component: str) -> str:
    """A path of OpenCLIP's text encoder, of those that hold one weight each.

    Args:
        path: in `CLIPTextModel`, without `text_model.`.
        component: its name, for messages.

    Raises:
        InterchangeError: OpenCLIP has no such module.
    """
    if path == "final_layer_norm":
        return "ln_final"
    if path == "embeddings.token_embedding":
        return "token_embedding"
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", path)
    if match is None or match[2] not in _OPEN_CLIP_LAYER:
        raise _unknown(component, path)
    return f"transformer.resblocks.{match[1]}.{_OPEN_CLIP_LAYER[match[2]]}"


def _unknown(component: str, path: str) -> InterchangeError:
    return InterchangeError(
        f"the code that Stable Diffusion was published with has no known name for "
        f"{component}.{path}: it is of another architecture"
    )
