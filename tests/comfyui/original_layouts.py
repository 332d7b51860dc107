"""Models of diffusers in the layout of their first code, which ComfyUI has, written by hand.

`test_places.py` holds these against diffusers' own converters of single files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Row = tuple[str, str]
Layout = Callable[[Tensors], dict[str, Tensor]]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(tensors: Tensors) -> dict[str, Tensor]:
    """Of Stable Diffusion 1, 2 and XL: each block counted through, `input_blocks`, …"""
    # Each level: its resnets, then what changes the size.
    resnets = [m for name in tensors if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))]
    per_level = max(int(m[1]) for m in resnets) + 2
    renamed = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        if module in _UNET_ENDS:
            key = _UNET_ENDS[module]
        elif parts[0] == "mid_block":
            part, index, rest = parts[1], int(parts[2]), ".".join(parts[3:])
            place = 1 if part == "attentions" else 2 * index
            key = f"middle_block.{place}.{_RESNET.get(rest, rest)}"
        else:
            level, part, index, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
            side = "input" if parts[0] == "down_blocks" else "output"
            first = level * per_level + (side == "input")
            if part == "downsamplers":
                key = f"input_blocks.{first + per_level - 1}.0.op"
            elif part == "upsamplers":
                with_attention = f"up_blocks.{level}.attentions.0.norm.weight" in tensors
                key = f"output_blocks.{first + per_level - 1}.{1 + with_attention}.{rest}"
            else:
                place = 1 if part == "attentions" else 0
                key = f"{side}_blocks.{first + index}.{place}.{_RESNET.get(rest, rest)}"
        renamed[f"{key}.{kind}"] = tensor
    return renamed


def _joint(part: str, prefix: str) -> list[Row]:
    attention, tokens = f"transformer_blocks.#.{part}", f"{prefix}"
    return [
        (f"{tokens}.qkv", f"{attention}.to_q {attention}.to_k {attention}.to_v"),
        (f"{tokens}.proj", f"{attention}.to_out.0"),
        (f"{tokens}.ln_q", f"{attention}.norm_q"),
        (f"{tokens}.ln_k", f"{attention}.norm_k"),
    ]


def _added(prefix: str) -> list[Row]:
    attention = "transformer_blocks.#.attn"
    fused = " ".join(f"{attention}.add_{x}_proj" for x in "qkv")
    return [
        (f"{prefix}.qkv", fused),
        (f"{prefix}.proj", f"{attention}.to_add_out"),
        (f"{prefix}.ln_q", f"{attention}.norm_added_q"),
        (f"{prefix}.ln_k", f"{attention}.norm_added_k"),
    ]


_SD3 = [
    *_joint("attn", "joint_blocks.#.x_block.attn"),
    *_joint("attn2", "joint_blocks.#.x_block.attn2"),
    *_added("joint_blocks.#.context_block.attn"),
    ("joint_blocks.#.x_block.mlp.fc1", "transformer_blocks.#.ff.net.0.proj"),
    ("joint_blocks.#.x_block.mlp.fc2", "transformer_blocks.#.ff.net.2"),
    ("joint_blocks.#.context_block.mlp.fc1", "transformer_blocks.#.ff_context.net.0.proj"),
    ("joint_blocks.#.context_block.mlp.fc2", "transformer_blocks.#.ff_context.net.2"),
    ("joint_blocks.#.x_block.adaLN_modulation.1", "transformer_blocks.#.norm1.linear"),
    ("joint_blocks.#.context_block.adaLN_modulation.1",
     "transformer_blocks.#.norm1_context.linear"),
    ("x_embedder.proj", "pos_embed.proj"),
    ("context_embedder", "context_embedder"),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
]  # fmt: skip
_BFL = [
    *_joint("attn", "double_blocks.#.img_attn"),
    *_added("double_blocks.#.txt_attn"),
    ("img_in", "x_embedder"),
    ("txt_in", "context_embedder"),
    ("single_blocks.#.norm.query_norm", "single_transformer_blocks.#.attn.norm_q"),
    ("single_blocks.#.norm.key_norm", "single_transformer_blocks.#.attn.norm_k"),
    ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("final_layer.linear", "proj_out"),
]
_SINGLE = "single_transformer_blocks.#"
_FLUX = [
    *_BFL,
    ("double_blocks.#.img_mlp.0", "transformer_blocks.#.ff.net.0.proj"),
    ("double_blocks.#.img_mlp.2", "transformer_blocks.#.ff.net.2"),
    ("double_blocks.#.txt_mlp.0", "transformer_blocks.#.ff_context.net.0.proj"),
    ("double_blocks.#.txt_mlp.2", "transformer_blocks.#.ff_context.net.2"),
    ("double_blocks.#.img_mod.lin", "transformer_blocks.#.norm1.linear"),
    ("double_blocks.#.txt_mod.lin", "transformer_blocks.#.norm1_context.linear"),
    ("single_blocks.#.linear1",
     f"{_SINGLE}.attn.to_q {_SINGLE}.attn.to_k {_SINGLE}.attn.to_v {_SINGLE}.proj_mlp"),
    ("single_blocks.#.linear2", f"{_SINGLE}.proj_out"),
    ("single_blocks.#.modulation.lin", f"{_SINGLE}.norm.linear"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
]  # fmt: skip
_FLUX2 = [
    *_BFL,
    ("double_blocks.#.img_mlp.0", "transformer_blocks.#.ff.linear_in"),
    ("double_blocks.#.img_mlp.2", "transformer_blocks.#.ff.linear_out"),
    ("double_blocks.#.txt_mlp.0", "transformer_blocks.#.ff_context.linear_in"),
    ("double_blocks.#.txt_mlp.2", "transformer_blocks.#.ff_context.linear_out"),
    ("single_blocks.#.linear1", f"{_SINGLE}.attn.to_qkv_mlp_proj"),
    ("single_blocks.#.linear2", f"{_SINGLE}.attn.to_out"),
    ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
    ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
    ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    ("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2"),
    ("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1"),
    ("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2"),
]
_Z_BLOCKS = ("layers.#", "noise_refiner.#", "context_refiner.#")
_Z_IMAGE = [
    *[
        row
        for block in _Z_BLOCKS
        for row in (
            (f"{block}.attention.qkv",
             " ".join(f"{block}.attention.to_{x}" for x in "qkv")),
            (f"{block}.attention.out", f"{block}.attention.to_out.0"),
            (f"{block}.attention.q_norm", f"{block}.attention.norm_q"),
            (f"{block}.attention.k_norm", f"{block}.attention.norm_k"),
            *[(f"{block}.{own}", f"{block}.{own}") for own in (
                "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0",
                "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2",
            )],
        )
    ],
    ("x_embedder", "all_x_embedder.2-1"),
    ("final_layer.linear", "all_final_layer.2-1.linear"),
    ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    ("t_embedder.mlp.0", "t_embedder.mlp.0"),
    ("t_embedder.mlp.2", "t_embedder.mlp.2"),
    ("cap_embedder.0", "cap_embedder.0"),
    ("cap_embedder.1", "cap_embedder.1"),
]  # fmt: skip


def _by_rows(tensors: Tensors, rows: list[Row]) -> dict[str, Tensor]:
    """Renamed by rows of a key and the modules fused in it, `#` for a block's number."""
    renamed = {}
    for key, fused in rows:
        names = fused.split()
        for kind in ("weight", "bias"):
            pattern = re.escape(f"{names[0]}.{kind}").replace(r"\#", r"(\d+)")
            for match in filter(None, (re.fullmatch(pattern, name) for name in tensors)):
                number = match[1] if match.lastindex else ""
                parts = [tensors[f"{name}.{kind}".replace("#", number)] for name in names]
                renamed[f"{key}.{kind}".replace("#", number)] = torch.cat(parts)
    return renamed


def _with_shift_first(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Tensors of which those named have a shift and a scale in the other order."""
    return {
        name: torch.cat(tensor.chunk(2)[::-1]) if name.rpartition(".")[0] in names else tensor
        for name, tensor in tensors.items()
    }


def sd3(tensors: Tensors) -> dict[str, Tensor]:
    renamed = _by_rows(tensors, _SD3) | {"pos_embed": tensors["pos_embed.pos_embed"]}
    last = max(int(key.split(".")[1]) for key in renamed if key.startswith("joint_blocks."))
    modulation = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    return _with_shift_first(renamed, "final_layer.adaLN_modulation.1", modulation)


def flux(tensors: Tensors) -> dict[str, Tensor]:
    renamed = {_with_bfl_norms(k): t for k, t in _by_rows(tensors, _FLUX).items()}
    return _with_shift_first(renamed, "final_layer.adaLN_modulation.1")


def flux2(tensors: Tensors) -> dict[str, Tensor]:
    renamed = {_with_bfl_norms(k): t for k, t in _by_rows(tensors, _FLUX2).items()}
    return _with_shift_first(renamed, "final_layer.adaLN_modulation.1")


def _with_bfl_norms(key: str) -> str:
    key = key.replace(".ln_q.", ".norm.query_norm.").replace(".ln_k.", ".norm.key_norm.")
    return re.sub(r"(query|key)_norm\.weight", r"\1_norm.scale", key)


def z_image(tensors: Tensors) -> dict[str, Tensor]:
    return _by_rows(tensors, _Z_IMAGE)


def qwen_image(tensors: Tensors) -> dict[str, Tensor]:
    return dict(tensors)


def text_encoder(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """A text encoder inside a CLIP of ComfyUI."""
    return {
        f"{name}.transformer.{f'text_model.{k}' if k.startswith('encoder.layers') else k}": tensor
        for k, tensor in tensors.items()
    }
