"""Names of transformers' layers in kohya's files, by class of the transformer.

Each row: a path in diffusers as a regular expression, the path in the model's first code, and which
part of that layer it is where it fuses several.
"""

from __future__ import annotations

Row = tuple[str, str, int]

UNFUSED = ("QwenImageTransformer2DModel",)
"""Transformers whose first code has diffusers' paths."""


def _fused(prefix: str, parts: tuple[str, ...], name: str) -> tuple[Row, ...]:
    return tuple((prefix + part, name, number) for number, part in enumerate(parts))


_QKV = ("to_q", "to_k", "to_v")
_ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")

_JOINT = r"transformer_blocks\.(\d+)\."
_SD3: tuple[Row, ...] = (
    *_fused(_JOINT + r"attn\.", _QKV, r"joint_blocks_\1_x_block_attn_qkv"),
    *_fused(_JOINT + r"attn\.", _ADDED_QKV, r"joint_blocks_\1_context_block_attn_qkv"),
    *_fused(_JOINT + r"attn2\.", _QKV, r"joint_blocks_\1_x_block_attn2_qkv"),
    (_JOINT + r"attn\.to_out\.0", r"joint_blocks_\1_x_block_attn_proj", 0),
    (_JOINT + r"attn\.to_add_out", r"joint_blocks_\1_context_block_attn_proj", 0),
    (_JOINT + r"attn2\.to_out\.0", r"joint_blocks_\1_x_block_attn2_proj", 0),
    (_JOINT + r"ff\.net\.0\.proj", r"joint_blocks_\1_x_block_mlp_fc1", 0),
    (_JOINT + r"ff\.net\.2", r"joint_blocks_\1_x_block_mlp_fc2", 0),
    (_JOINT + r"ff_context\.net\.0\.proj", r"joint_blocks_\1_context_block_mlp_fc1", 0),
    (_JOINT + r"ff_context\.net\.2", r"joint_blocks_\1_context_block_mlp_fc2", 0),
)

_SINGLE = r"single_transformer_blocks\.(\d+)\."
_DOUBLE_BLOCK_ATTENTION: tuple[Row, ...] = (
    *_fused(_JOINT + r"attn\.", _QKV, r"double_blocks_\1_img_attn_qkv"),
    *_fused(_JOINT + r"attn\.", _ADDED_QKV, r"double_blocks_\1_txt_attn_qkv"),
    (_JOINT + r"attn\.to_out\.0", r"double_blocks_\1_img_attn_proj", 0),
    (_JOINT + r"attn\.to_add_out", r"double_blocks_\1_txt_attn_proj", 0),
)
_SINGLE_INPUTS = (r"attn\.to_q", r"attn\.to_k", r"attn\.to_v", "proj_mlp")
_FLUX: tuple[Row, ...] = (
    *_DOUBLE_BLOCK_ATTENTION,
    (_JOINT + r"ff\.net\.0\.proj", r"double_blocks_\1_img_mlp_0", 0),
    (_JOINT + r"ff\.net\.2", r"double_blocks_\1_img_mlp_2", 0),
    (_JOINT + r"ff_context\.net\.0\.proj", r"double_blocks_\1_txt_mlp_0", 0),
    (_JOINT + r"ff_context\.net\.2", r"double_blocks_\1_txt_mlp_2", 0),
    (_JOINT + r"norm1\.linear", r"double_blocks_\1_img_mod_lin", 0),
    (_JOINT + r"norm1_context\.linear", r"double_blocks_\1_txt_mod_lin", 0),
    *_fused(_SINGLE, _SINGLE_INPUTS, r"single_blocks_\1_linear1"),
    (_SINGLE + "proj_out", r"single_blocks_\1_linear2", 0),
    (_SINGLE + r"norm\.linear", r"single_blocks_\1_modulation_lin", 0),
)
_FLUX2: tuple[Row, ...] = (
    *_DOUBLE_BLOCK_ATTENTION,
    (_JOINT + r"ff\.linear_in", r"double_blocks_\1_img_mlp_0", 0),
    (_JOINT + r"ff\.linear_out", r"double_blocks_\1_img_mlp_2", 0),
    (_JOINT + r"ff_context\.linear_in", r"double_blocks_\1_txt_mlp_0", 0),
    (_JOINT + r"ff_context\.linear_out", r"double_blocks_\1_txt_mlp_2", 0),
    (_SINGLE + r"attn\.to_qkv_mlp_proj", r"single_blocks_\1_linear1", 0),
    (_SINGLE + r"attn\.to_out", r"single_blocks_\1_linear2", 0),
)

_Z_LAYER = r"(layers|noise_refiner|context_refiner)\.(\d+)\."
_Z_IMAGE: tuple[Row, ...] = (
    *_fused(_Z_LAYER + r"attention\.", _QKV, r"\1_\2_attention_qkv"),
    (_Z_LAYER + r"attention\.to_out\.0", r"\1_\2_attention_out", 0),
    (_Z_LAYER + r"feed_forward\.(w[123])", r"\1_\2_feed_forward_\3", 0),
)

FUSED_NAMES: dict[str, tuple[Row, ...]] = {
    "SD3Transformer2DModel": _SD3,
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX2,
    "ZImageTransformer2DModel": _Z_IMAGE,
}
"""The rows of each transformer with fused layers."""
