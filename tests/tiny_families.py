"""Models of many families, tiny and of random weights: nothing is downloaded.

`DENOISERS` and `TEXT_ENCODERS` hold a builder per family; see `tiny_builders`.
"""

from __future__ import annotations

from typing import Any

from tiny import make_tiny_unet
from tiny_builders import (
    CAPTIONED,
    CHANNELS,
    DOUBLE_SINGLE,
    HEADS,
    HUNYUAN,
    LAYERS,
    ROPE,
    Builder,
    denoiser,
    each,
)
from tiny_text_encoders import TEXT_ENCODERS
from tiny_video_families import VIDEO_DENOISERS

__all__ = ["DENOISERS", "TEXT_ENCODERS"]

_ROPE_4D = (2, 2, 2, 2)
_FLUX: dict[str, Any] = {**DOUBLE_SINGLE, "in_channels": 4, "joint_attention_dim": 16}
_FLUX_1: dict[str, Any] = {**_FLUX, "axes_dims_rope": ROPE}
_COGVIEW: dict[str, Any] = {
    **LAYERS,
    **each(16, "text_embed_dim time_embed_dim condition_dim"),
    **each(8, "pos_embed_max_size sample_size"),
}
# Attention whose keys are the text's alone or the text's and the image's.
_SIMPLE_CROSS_ATTENTION: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
_UNETS: dict[str, Builder] = {
    "sd": make_tiny_unet,
    "sdxl": lambda: make_tiny_unet(
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    ),
    "if": lambda: make_tiny_unet(
        **_SIMPLE_CROSS_ATTENTION,
        encoder_hid_dim=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    ),
    "unclip": lambda: make_tiny_unet(**_SIMPLE_CROSS_ATTENTION, only_cross_attention=True),
    "kandinsky2": lambda: make_tiny_unet(
        **_SIMPLE_CROSS_ATTENTION,
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
    ),
    "kandinsky3": denoiser(
        "Kandinsky3UNet",
        **each(16, "time_embedding_dim cross_attention_dim encoder_hid_dim"),
        groups=4,
        attention_head_dim=8,
        layers_per_block=1,
        block_out_channels=(8, 16, 16, 16),
    ),
    "stable-cascade": denoiser(
        "StableCascadeUNet",
        **CHANNELS,
        **each(16, "timestep_ratio_embedding_dim conditioning_dim clip_text_pooled_in_channels"),
        **each((1, 1), "down_num_layers_per_block up_num_layers_per_block"),
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
    ),
}

_TRANSFORMERS: dict[str, Builder] = {
    "dit": denoiser("DiTTransformer2DModel", **LAYERS, sample_size=8, norm_num_groups=4),
    "pixart": denoiser("PixArtTransformer2DModel", **CAPTIONED, sample_size=8, norm_num_groups=4),
    "sd3": denoiser(
        "SD3Transformer2DModel",
        **LAYERS | {"num_layers": 3},
        **each(16, "joint_attention_dim caption_projection_dim pooled_projection_dim"),
        **each(8, "sample_size pos_embed_max_size"),
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    "auraflow": denoiser(
        "AuraFlowTransformer2DModel",
        **HEADS,
        **CHANNELS,
        **each(16, "joint_attention_dim caption_projection_dim pos_embed_max_size"),
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
    ),
    "flux": denoiser("FluxTransformer2DModel", **_FLUX_1, pooled_projection_dim=16),
    "chroma": denoiser(
        "ChromaTransformer2DModel",
        **_FLUX_1,
        **each(16, "approximator_num_channels approximator_hidden_dim"),
        approximator_layers=1,
    ),
    "bria": denoiser("BriaTransformer2DModel", **_FLUX_1),
    "bria-fibo": denoiser("BriaFiboTransformer2DModel", **_FLUX_1, text_encoder_dim=16),
    "longcat": denoiser("LongCatImageTransformer2DModel", **_FLUX_1, pooled_projection_dim=16),
    "ovis": denoiser("OvisImageTransformer2DModel", **_FLUX_1, out_channels=4),
    "flux2": denoiser(
        "Flux2Transformer2DModel", **_FLUX, axes_dims_rope=_ROPE_4D, timestep_guidance_channels=16
    ),
    "flux3": denoiser(
        "Flux3Transformer2DModel",
        **_FLUX,
        cond_in_channels=4,
        axes_dims_rope=_ROPE_4D,
        timestep_channels=16,
    ),
    "qwen-image": denoiser(
        "QwenImageTransformer2DModel",
        **LAYERS | {"in_channels": 16},
        joint_attention_dim=16,
        axes_dims_rope=ROPE,
    ),
    "qwen-image-2.1": denoiser(
        "QwenImage21Transformer2DModel", **LAYERS, context_in_dim=16, axes_dims_rope=ROPE
    ),
    "z-image": denoiser(
        "ZImageTransformer2DModel",
        **each(2, "n_layers n_heads n_kv_heads"),
        **each(16, "dim cap_feat_dim"),
        in_channels=4,
        n_refiner_layers=1,
        axes_dims=[2, 2, 4],
        axes_lens=[32, 16, 16],
    ),
    "sana": denoiser(
        "SanaTransformer2DModel",
        **CAPTIONED,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        sample_size=8,
    ),
    "lumina": denoiser(
        "LuminaNextDiT2DModel",
        **each(2, "num_layers num_attention_heads"),
        **each(16, "hidden_size cross_attention_dim"),
        **each(8, "sample_size multiple_of"),
        num_kv_heads=1,
        ffn_dim_multiplier=1.0,
    ),
    "lumina2": denoiser(
        "Lumina2Transformer2DModel",
        **each(2, "num_layers num_attention_heads"),
        **each(16, "hidden_size cap_feat_dim"),
        **each(8, "sample_size multiple_of"),
        **each(1, "num_refiner_layers num_kv_heads"),
        in_channels=4,
        axes_dim_rope=ROPE,
        axes_lens=(32, 16, 16),
    ),
    "hidream": denoiser(
        "HiDreamImageTransformer2DModel",
        **DOUBLE_SINGLE,
        **each(2, "patch_size num_routed_experts"),
        in_channels=4,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    ),
    "krea2": denoiser(
        "Krea2Transformer2DModel",
        **HEADS,
        **each(2, "num_layers num_text_layers text_num_attention_heads text_num_key_value_heads"),
        **each(16, "intermediate_size timestep_embed_dim text_hidden_dim text_intermediate_size"),
        **each(1, "num_key_value_heads num_layerwise_text_blocks num_refiner_text_blocks"),
        in_channels=4,
        axes_dims_rope=ROPE,
    ),
    "ideogram4": denoiser(
        "Ideogram4Transformer2DModel",
        **HEADS,
        **each(16, "intermediate_size adaln_dim llm_features_dim"),
        in_channels=4,
        num_layers=2,
        mrope_section=(2, 1, 1),
    ),
    "hunyuan-dit": denoiser(
        "HunyuanDiT2DModel",
        **HEADS,
        **each(16, "hidden_size cross_attention_dim cross_attention_dim_t5 pooled_projection_dim"),
        **each(4, "in_channels text_len text_len_t5"),
        patch_size=2,
        sample_size=8,
        num_layers=3,
    ),
    "hunyuan-image": denoiser(
        "HunyuanImageTransformer2DModel",
        **HUNYUAN,
        rope_axes_dim=(4, 4),
        text_embed_2_dim=16,
    ),
    "cogview3": denoiser("CogView3PlusTransformer2DModel", **_COGVIEW),
    "cogview4": denoiser("CogView4Transformer2DModel", **_COGVIEW, rope_axes_dim=(8, 8)),
    "kandinsky2-prior": denoiser(
        "PriorTransformer", **HEADS, num_layers=2, embedding_dim=16, num_embeddings=4
    ),
    "prx": denoiser(
        "PRXTransformer2DModel",
        **each(2, "num_heads depth"),
        **each(16, "context_in_dim hidden_size"),
        in_channels=4,
        axes_dim=[4, 4],
    ),
    "joyimage": denoiser(
        "JoyImageEditTransformer3DModel",
        **each(2, "num_attention_heads num_layers"),
        **each(16, "hidden_size text_dim"),
        in_channels=4,
        rope_dim_list=[2, 2, 4],
    ),
    "omnigen": denoiser(
        "OmniGenTransformer2DModel",
        **each(2, "num_attention_heads num_layers"),
        **each(16, "hidden_size intermediate_size time_step_dim"),
        **each(32, "vocab_size max_position_embeddings original_max_position_embeddings"),
        num_key_value_heads=1,
        pad_token_id=0,
        pos_embed_max_size=8,
        rope_scaling=each([1.0] * 4, "short_factor long_factor"),
    ),
}

DENOISERS: dict[str, Builder] = {**_UNETS, **_TRANSFORMERS, **VIDEO_DENOISERS}
