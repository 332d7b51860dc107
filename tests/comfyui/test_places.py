"""ComfyUI's places of layers: the sheet's tables by hand, and full-size models layer by layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import original_layouts
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils
from torch import Tensor

from svfit_diffusion.adapters.targets import attention_layers, shiftable_layers
from svfit_diffusion.comfyui.places import ClipPlaces, ModelPlaces, Place
from svfit_diffusion.errors import ConfigError

_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_SD35_MEDIUM: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
# Full-size models, the layout of their first code, and how many layers attention has.
FAMILIES: dict[str, tuple[Callable[[], Any], original_layouts.Layout, int]] = {
    "sd": (lambda: UNet2DConditionModel(**_UNET), original_layouts.unet, 128),
    "sd2": (
        lambda: UNet2DConditionModel(
            **_UNET | {"cross_attention_dim": 1024, "use_linear_projection": True}
        ),
        original_layouts.unet,
        128,
    ),
    "sdxl": (lambda: UNet2DConditionModel(**_SDXL), original_layouts.unet, 560),
    "sd3": (
        lambda: SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536
        ),
        original_layouts.sd3,
        191,
    ),
    "sd3.5": (lambda: SD3Transformer2DModel(**_SD35_MEDIUM), original_layouts.sd3, 243),
    "flux": (lambda: FluxTransformer2DModel(guidance_embeds=True), original_layouts.flux, 266),
    "flux2": (Flux2Transformer2DModel, original_layouts.flux2, 160),
    "qwen": (QwenImageTransformer2DModel, original_layouts.qwen_image, 480),
    "z_image": (ZImageTransformer2DModel, original_layouts.z_image, 136),
}
CONVERTERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "sd": single_file_utils.convert_ldm_unet_checkpoint,
    "sd2": single_file_utils.convert_ldm_unet_checkpoint,
    "sdxl": single_file_utils.convert_ldm_unet_checkpoint,
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "sd3.5": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux": single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "z_image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
}


@functools.cache
def full_size(family: str) -> Any:
    with init_empty_weights():
        return FAMILIES[family][0]()


@functools.cache
def marked(family: str) -> dict[str, Tensor]:
    """For each tensor of a full-size model, one of as many rows: a number of its own in each."""
    tensors = {}
    for number, (name, tensor) in enumerate(full_size(family).state_dict().items()):
        rows = number * 2**20 + torch.arange(tensor.shape[0])
        tensors[name] = rows.reshape(-1, *[1] * (tensor.dim() - 1))
    return tensors


def original(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return FAMILIES[family][1](tensors)


def places(family: str) -> ModelPlaces:
    tensors = original(family, full_size(family).state_dict())
    return ModelPlaces({f"diffusion_model.{k}": tuple(t.shape) for k, t in tensors.items()})


def component(family: str) -> str:
    return "unet" if family in ("sd", "sd2", "sdxl") else "transformer"


@pytest.mark.parametrize("family", CONVERTERS)
def test_the_layouts_here_are_those_that_diffusers_reads(family: str) -> None:
    tensors = original(family, marked(family))
    prefix = "model.diffusion_model." if component(family) == "unet" else ""
    read = CONVERTERS[family](
        {prefix + key: tensor for key, tensor in tensors.items()}, config=full_size(family).config
    )
    expected = marked(family)
    left_out = {name for name in expected if name not in read}
    assert left_out <= {"x_pad_token", "cap_pad_token"}
    for name in expected.keys() - left_out:
        assert torch.equal(read[name], expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_a_full_size_model_has_its_own_rows(family: str) -> None:
    model, place_of = full_size(family), places(family)
    tensors, expected = original(family, marked(family)), marked(family)
    covered = {key: torch.zeros(len(tensor), dtype=torch.int) for key, tensor in tensors.items()}
    layers = shiftable_layers(model)
    for path in layers:
        place = place_of(component(family), path)
        assert place is not None, path
        key = place.key.removeprefix("diffusion_model.")
        assert torch.equal(place.take(tensors[key]), expected[f"{path}.weight"]), path
        assert torch.equal(place.turn(expected[f"{path}.weight"]), rows_of(place, tensors[key]))
        start, length = place.rows or (0, len(tensors[key]))
        covered[key][start : start + length] += 1
    # No row of a matrix is two layers', and none is nobody's.
    for key, count in covered.items():
        is_layer = tensors[key].dim() > 1 and key.endswith(".weight")
        assert (count == (1 if is_layer else 0)).all(), key
    assert len(attention_layers(model)) == FAMILIES[family][2]


def rows_of(place: Place, tensor: Tensor) -> Tensor:
    start, length = place.rows or (0, len(tensor))
    return tensor[start : start + length]


# As the sheet has them. A slice: first row and number of rows.
TABLE = [
    ("sd", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
     "input_blocks.1.1.transformer_blocks.0.attn1.to_q", None),
    ("sd", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
     "middle_block.1.transformer_blocks.0.attn2.to_out.0", None),
    ("sd", "down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3", None),
    ("sd", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv", None),
    ("sd", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", None),
    ("sd", "up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out", None),
    ("sdxl", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
     "input_blocks.4.1.transformer_blocks.0.attn1.to_q", None),
    ("sdxl", "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_v",
     "output_blocks.2.1.transformer_blocks.9.attn2.to_v", None),
    ("sdxl", "down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection", None),
    ("sdxl", "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op", None),
    ("sdxl", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", None),
    ("sdxl", "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1", None),
    ("sdxl", "time_embedding.linear_2", "time_embed.2", None),
    ("sdxl", "add_embedding.linear_1", "label_emb.0.0", None),
    ("sdxl", "conv_in", "input_blocks.0.0", None),
    ("sdxl", "conv_out", "out.2", None),
    ("sd3", "transformer_blocks.0.attn.to_q", "joint_blocks.0.x_block.attn.qkv", (0, 1536)),
    ("sd3", "transformer_blocks.0.attn.add_k_proj", "joint_blocks.0.context_block.attn.qkv",
     (1536, 1536)),
    ("sd3", "transformer_blocks.0.ff.net.0.proj", "joint_blocks.0.x_block.mlp.fc1", None),
    ("sd3.5", "transformer_blocks.3.attn2.to_v", "joint_blocks.3.x_block.attn2.qkv", (3072, 1536)),
    ("sd3.5", "transformer_blocks.3.attn2.to_out.0", "joint_blocks.3.x_block.attn2.proj", None),
    ("flux", "transformer_blocks.18.attn.to_q", "double_blocks.18.img_attn.qkv", (0, 3072)),
    ("flux", "transformer_blocks.0.attn.to_k", "double_blocks.0.img_attn.qkv", (3072, 3072)),
    ("flux", "transformer_blocks.0.attn.to_v", "double_blocks.0.img_attn.qkv", (6144, 3072)),
    ("flux", "transformer_blocks.0.attn.add_v_proj", "double_blocks.0.txt_attn.qkv", (6144, 3072)),
    ("flux", "transformer_blocks.0.attn.to_out.0", "double_blocks.0.img_attn.proj", None),
    ("flux", "transformer_blocks.0.attn.to_add_out", "double_blocks.0.txt_attn.proj", None),
    ("flux", "transformer_blocks.0.ff.net.2", "double_blocks.0.img_mlp.2", None),
    ("flux", "transformer_blocks.0.ff_context.net.0.proj", "double_blocks.0.txt_mlp.0", None),
    ("flux", "transformer_blocks.0.norm1_context.linear", "double_blocks.0.txt_mod.lin", None),
    ("flux", "single_transformer_blocks.37.attn.to_v", "single_blocks.37.linear1", (6144, 3072)),
    ("flux", "single_transformer_blocks.37.proj_mlp", "single_blocks.37.linear1", (9216, 12288)),
    ("flux", "single_transformer_blocks.0.proj_out", "single_blocks.0.linear2", None),
    ("flux", "single_transformer_blocks.0.norm.linear", "single_blocks.0.modulation.lin", None),
    ("flux", "norm_out.linear", "final_layer.adaLN_modulation.1", None),
    ("flux", "time_text_embed.text_embedder.linear_1", "vector_in.in_layer", None),
    ("flux2", "transformer_blocks.7.ff.linear_in", "double_blocks.7.img_mlp.0", None),
    ("flux2", "transformer_blocks.7.ff_context.linear_out", "double_blocks.7.txt_mlp.2", None),
    ("flux2", "single_transformer_blocks.47.attn.to_qkv_mlp_proj", "single_blocks.47.linear1",
     None),
    ("flux2", "single_transformer_blocks.0.attn.to_out", "single_blocks.0.linear2", None),
    ("flux2", "double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin", None),
    ("flux2", "single_stream_modulation.linear", "single_stream_modulation.lin", None),
    ("qwen", "transformer_blocks.59.attn.add_v_proj", "transformer_blocks.59.attn.add_v_proj",
     None),
    ("qwen", "transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.img_mlp.net.0.proj",
     None),
    ("z_image", "layers.0.attention.to_q", "layers.0.attention.qkv", (0, 3840)),
    ("z_image", "noise_refiner.1.attention.to_out.0", "noise_refiner.1.attention.out", None),
    ("z_image", "context_refiner.1.attention.to_v", "context_refiner.1.attention.qkv",
     (7680, 3840)),
    ("z_image", "layers.29.feed_forward.w2", "layers.29.feed_forward.w2", None),
]  # fmt: skip


@pytest.mark.parametrize(("family", "path", "key", "rows"), TABLE)
def test_a_layer_lies_where_the_sheet_says(
    family: str, path: str, key: str, rows: tuple[int, int] | None
) -> None:
    place = places(family)(component(family), path)
    assert place is not None
    assert (place.key, place.rows) == (f"diffusion_model.{key}.weight", rows)
    assert place.target == (place.key if rows is None else (place.key, (0, *rows)))


@pytest.mark.parametrize(
    ("family", "component", "path"),
    [
        ("sd", "transformer", "transformer_blocks.0.attn.to_q"),
        ("sd", "unet", "down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("sd", "unet", "down_blocks.0.resnets.0.norm1"),
        ("sd", "unet", "strange.layer"),
        ("sd", "text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"),
        ("flux", "unet", "conv_in"),
        ("flux", "transformer", "transformer_blocks.19.attn.to_q"),
        ("flux", "transformer", "transformer_blocks.0.attn2.to_q"),
        ("flux", "transformer_2", "transformer_blocks.0.attn.to_q"),
        ("qwen", "transformer", "transformer_blocks.0.attn.norm_q"),
    ],
)
def test_what_a_model_has_not_has_no_place(family: str, component: str, path: str) -> None:
    assert places(family)(component, path) is None


def test_a_model_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"supported are Stable Diffusion 1.*Z-Image.*LoRA"):
        ModelPlaces({"diffusion_model.blocks.0.self_attn.q.weight": (4, 4)})


CLIP_LAYER = "encoder.layers.11.self_attn.q_proj"
T5_LAYER = "encoder.block.0.layer.0.SelfAttention.q"
IN_CLIP = "transformer.text_model.encoder.layers.11.self_attn.q_proj.weight"
IN_T5 = "transformer.encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("encoders", "component", "path", "key"),
    [
        (("clip_l",), "text_encoder", CLIP_LAYER, f"clip_l.{IN_CLIP}"),
        (("clip_l",), "text_encoder", f"text_model.{CLIP_LAYER}", f"clip_l.{IN_CLIP}"),
        (("clip_h",), "text_encoder", CLIP_LAYER, f"clip_h.{IN_CLIP}"),
        (("clip_g", "clip_l"), "text_encoder", CLIP_LAYER, f"clip_l.{IN_CLIP}"),
        (("clip_g", "clip_l"), "text_encoder_2", CLIP_LAYER, f"clip_g.{IN_CLIP}"),
        (("clip_g", "clip_l"), "text_encoder_2", "text_projection",
         "clip_g.transformer.text_projection.weight"),
        (("clip_l", "clip_g", "t5xxl"), "text_encoder_2", CLIP_LAYER, f"clip_g.{IN_CLIP}"),
        (("clip_l", "clip_g", "t5xxl"), "text_encoder_3", T5_LAYER, f"t5xxl.{IN_T5}"),
        (("clip_l", "t5xxl"), "text_encoder_2", T5_LAYER, f"t5xxl.{IN_T5}"),
        (("clip_l",), "text_encoder_2", CLIP_LAYER, None),
        (("clip_l", "clip_g"), "text_encoder_3", T5_LAYER, None),
        (("clip_l",), "text_encoder", "encoder.layers.12.self_attn.q_proj", None),
        (("clip_l",), "text_encoder", "text_model.final_layer_norm", None),
        (("qwen25_7b",), "text_encoder", "model.layers.0.self_attn.q_proj", None),
        (("clip_l",), "unet", CLIP_LAYER, None),
    ],
)  # fmt: skip
def test_a_text_encoder_s_layer_lies_in_the_clip(
    encoders: tuple[str, ...], component: str, path: str, key: str | None
) -> None:
    in_qwen = "transformer.model.layers.0.self_attn.q_proj.weight"
    keys = {"t5xxl": [IN_T5], "qwen25_7b": [in_qwen]}
    in_clip = [IN_CLIP, "transformer.text_projection.weight"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.{own}": (4, 4) for name in encoders for own in keys.get(name, in_clip)
    }
    shapes |= {f"{name}.transformer.text_model.final_layer_norm.weight": (4,) for name in encoders}
    found = ClipPlaces(shapes)(component, path)
    assert (found.key if found else None) == key
