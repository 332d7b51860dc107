"""Names in kohya's files, against the sheet of export formats, written down here by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.interchange.factors import Factors
from svfit_diffusion.interchange.header import header_of, peft_header
from svfit_diffusion.interchange.layouts import Base, dense_tensors, kohya_tensors
from svfit_diffusion.interchange.slots import slot_of


def denoiser(kind: str, **config: Any) -> Any:
    """Of a class of this name, with the configuration that names depend on."""
    return type(kind, (), {"config": {"layers_per_block": 2} | config})()


SD = denoiser("UNet2DConditionModel", cross_attention_dim=768)
SDXL = denoiser(
    "UNet2DConditionModel",
    addition_embed_type="text_time",
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
SD3 = denoiser("SD3Transformer2DModel")
FLUX = denoiser("FluxTransformer2DModel")
FLUX2 = denoiser("Flux2Transformer2DModel")
QWEN = denoiser("QwenImageTransformer2DModel")
Z_IMAGE = denoiser("ZImageTransformer2DModel")

NAMES = [
    (SD, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
     "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 0),
    (SD, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
     "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0", 0),
    (SD, "text_encoder.encoder.layers.11.self_attn.q_proj",
     "lora_te_text_model_encoder_layers_11_self_attn_q_proj", 0),
    (SDXL, "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
     "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 0),
    (SDXL, "unet.down_blocks.2.attentions.1.proj_in", "lora_unet_input_blocks_8_1_proj_in", 0),
    (SDXL, "unet.up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_v",
     "lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_v", 0),
    (SDXL, "unet.mid_block.attentions.0.proj_out", "lora_unet_middle_block_1_proj_out", 0),
    (SDXL, "unet.mid_block.resnets.1.conv1", "lora_unet_middle_block_2_in_layers_2", 0),
    (SDXL, "unet.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op", 0),
    (SDXL, "unet.up_blocks.1.upsamplers.0.conv", "lora_unet_output_blocks_5_2_conv", 0),
    (SDXL, "unet.down_blocks.1.resnets.0.time_emb_proj", "lora_unet_input_blocks_4_0_emb_layers_1",
     0),
    (SDXL, "unet.up_blocks.2.resnets.1.conv_shortcut",
     "lora_unet_output_blocks_7_0_skip_connection", 0),
    (SDXL, "unet.add_embedding.linear_2", "lora_unet_label_emb_0_2", 0),
    (SDXL, "unet.conv_out", "lora_unet_out_2", 0),
    (SDXL, "text_encoder.text_model.encoder.layers.0.mlp.fc1",
     "lora_te1_text_model_encoder_layers_0_mlp_fc1", 0),
    (SDXL, "text_encoder_2.encoder.layers.31.mlp.fc2",
     "lora_te2_text_model_encoder_layers_31_mlp_fc2", 0),
    (SD3, "transformer.transformer_blocks.23.attn.add_k_proj",
     "lora_unet_joint_blocks_23_context_block_attn_qkv", 1),
    (SD3, "transformer.transformer_blocks.3.attn2.to_v",
     "lora_unet_joint_blocks_3_x_block_attn2_qkv", 2),
    (SD3, "transformer.transformer_blocks.3.ff.net.2", "lora_unet_joint_blocks_3_x_block_mlp_fc2",
     0),
    (FLUX, "transformer.transformer_blocks.0.attn.to_k", "lora_unet_double_blocks_0_img_attn_qkv",
     1),
    (FLUX, "transformer.transformer_blocks.0.attn.to_add_out",
     "lora_unet_double_blocks_0_txt_attn_proj", 0),
    (FLUX, "transformer.transformer_blocks.18.ff_context.net.0.proj",
     "lora_unet_double_blocks_18_txt_mlp_0", 0),
    (FLUX, "transformer.single_transformer_blocks.37.proj_mlp",
     "lora_unet_single_blocks_37_linear1", 3),
    (FLUX, "transformer.single_transformer_blocks.0.proj_out", "lora_unet_single_blocks_0_linear2",
     0),
    (FLUX2, "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj",
     "lora_unet_single_blocks_0_linear1", 0),
    (FLUX2, "transformer.transformer_blocks.0.ff.linear_in", "lora_unet_double_blocks_0_img_mlp_0",
     0),
    (QWEN, "transformer.transformer_blocks.0.attn.to_q",
     "lora_unet_transformer_blocks_0_attn_to_q", 0),
    (Z_IMAGE, "transformer.layers.0.attention.to_v", "lora_unet_layers_0_attention_qkv", 2),
]  # fmt: skip


@pytest.mark.parametrize(("model", "layer", "name", "part"), NAMES)
def test_a_layer_has_the_name_of_the_sheet(model: Any, layer: str, name: str, part: int) -> None:
    component, _, path = layer.partition(".")
    slot = slot_of(component, path, model)
    assert (slot.name, slot.part) == (name, part)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (FLUX, "transformer.norm_out.linear"),
        (FLUX, "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"),
        (SDXL, "unet.strange.layer"),
        (denoiser("SanaTransformer2DModel"), "transformer.transformer_blocks.0.attn1.to_q"),
    ],
)
def test_a_layer_without_a_known_name_is_refused(model: Any, layer: str) -> None:
    component, _, path = layer.partition(".")
    with pytest.raises(InterchangeError, match="no known name"):
        slot_of(component, path, model)


def random_factors(d_out: int, d_in: int, rank: int) -> Factors:
    generator = torch.Generator().manual_seed(d_out + rank)
    up = torch.randn(d_out, rank, generator=generator)
    return Factors(up, torch.randn(rank, d_in, generator=generator))


SINGLE = "transformer.single_transformer_blocks.5."
WIDTHS = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}


def flux_base() -> Base:
    """One single block of FLUX.1 in full size, which diffusers' converter is made for."""
    layers = {
        SINGLE + name: SimpleNamespace(weight=torch.empty(width, 3072, device="meta"))
        for name, width in WIDTHS.items()
    }
    return Base(FLUX, layers)  # type: ignore[arg-type]


def test_diffusers_takes_a_fused_layer_of_unequal_ranks_apart() -> None:
    ranks = dict(zip(WIDTHS, (2, 1, 3, 1), strict=True))
    changes = {SINGLE + n: random_factors(WIDTHS[n], 3072, rank) for n, rank in ranks.items()}
    tensors = kohya_tensors(changes, flux_base())
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "lora_unet_single_blocks_5_linear1.lora_down.weight": (12, 3072),
        "lora_unet_single_blocks_5_linear1.lora_up.weight": (21504, 12),
        "lora_unet_single_blocks_5_linear1.alpha": (),
    }
    read = FluxPipeline.lora_state_dict(dict(tensors))
    for name, change in changes.items():
        up, down = read[f"{name}.lora_B.weight"], read[f"{name}.lora_A.weight"]
        assert len(down) == 3  # not the 12 of a layer that diffusers could not take apart
        torch.testing.assert_close(up @ down, change.matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_alpha_serves_all_ranks_and_fits_half_precision(dtype: torch.dtype) -> None:
    widths = {"unet.a": 8, "unet.b": 301}
    layers = {
        n: SimpleNamespace(weight=torch.empty(w, w, device="meta")) for n, w in widths.items()
    }
    changes = {name: random_factors(width, width, width) for name, width in widths.items()}
    tensors = kohya_tensors(changes, Base(SD, layers))  # type: ignore[arg-type]
    for name, change in changes.items():
        file_name = f"lora_{name.replace('.', '_')}"
        up, down = (tensors[f"{file_name}.lora_{side}.weight"] for side in ("up", "down"))
        alpha = tensors[f"{file_name}.alpha"].to(dtype)
        assert float(alpha) == 302  # 301 is none of bfloat16's numbers
        read = up @ down * (float(alpha) / len(down))
        # Sums of 301 products of about 1, in float32.
        torch.testing.assert_close(read, change.matrix, rtol=0, atol=1e-3)


def test_dense_changes_of_a_fused_layer_lie_above_each_other_zero_where_missing() -> None:
    change = torch.ones(3072, 3072)
    (diff,) = dense_tensors({SINGLE + "attn.to_k": change}, flux_base()).values()
    assert diff.shape == (21504, 3072)
    assert torch.equal(diff[3072:6144], change) and diff.sum() == change.sum()


def test_the_header_names_base_and_trigger() -> None:
    pipe = SimpleNamespace(scheduler=SimpleNamespace(config={"prediction_type": "v_prediction"}))
    metadata = AdapterMetadata(
        base_model="me/base",
        instance_prompt="a photo of sks dog",
        class_prompt="a photo of a dog",
    )
    expected = {
        SD: ("sd_v1", "False", "stable-diffusion-v1/lora"),
        denoiser("UNet2DConditionModel", cross_attention_dim=1024): (
            "sd_v2", "True", "stable-diffusion-v2-768-v/lora",
        ),
        SDXL: ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
        SD3: ("sd3m", None, "stable-diffusion-3/lora"),
        FLUX: ("flux1", None, "flux-1-dev/lora"),
        QWEN: (None, None, None),
    }  # fmt: skip
    for model, values in expected.items():
        header = header_of(pipe, model, metadata, "my-dog", 0.25)
        names = ("ss_base_model_version", "ss_v2", "modelspec.architecture")
        assert tuple(map(header.get, names)) == values
        assert header["format"] == "pt"
        assert header["modelspec.trigger_phrase"] == "sks"
        assert header["modelspec.title"] == header["ss_output_name"] == "my-dog"
        assert (header["svfit.base_model"], header["svfit.error"]) == ("me/base", "0.25")
        assert "ot_branch" not in header


def test_a_peft_header_tells_ranks_only_where_they_differ() -> None:
    assert peft_header({"transformer.a": 2, "transformer.b": 2}) == {}
    header = peft_header({"transformer.a": 2, "transformer.b": 3})
    settings = json.loads(header["lora_adapter_metadata"])
    assert settings["transformer.rank_pattern"] == {"a": 2, "b": 3}
