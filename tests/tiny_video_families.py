"""Denoisers of video and audio, tiny; see `tiny_families`."""

from __future__ import annotations

from typing import Any

from tiny_builders import CAPTIONED, CHANNELS, HUNYUAN, LAYERS, ROPE, Builder, denoiser, each

_COGVIDEO: dict[str, Any] = {
    **LAYERS,
    **each(16, "time_embed_dim text_embed_dim"),
    **each(8, "sample_width sample_height max_text_seq_length"),
    "sample_frames": 5,
}
_WAN: dict[str, Any] = {**LAYERS, **each(16, "text_dim freq_dim ffn_dim rope_max_seq_len")}
_COSMOS: dict[str, Any] = {
    **LAYERS,
    "attention_head_dim": 12,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
}
_VIDEO_UNET: dict[str, Any] = {
    **each(16, "cross_attention_dim"),
    **CHANNELS,
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}

VIDEO_DENOISERS: dict[str, Builder] = {
    "kandinsky5": denoiser(
        "Kandinsky5Transformer3DModel",
        **each(16, "in_text_dim in_text_dim2 time_dim model_dim ff_dim"),
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=ROPE,
    ),
    "hunyuan-video": denoiser(
        "HunyuanVideoTransformer3DModel", **HUNYUAN, rope_axes_dim=ROPE, pooled_projection_dim=16
    ),
    "cogvideox": denoiser("CogVideoXTransformer3DModel", **_COGVIDEO),
    "consisid": denoiser(
        "ConsisIDTransformer3DModel",
        **_COGVIDEO,
        **each(1, "cross_attn_interval LFE_ff_mult"),
        **each(2, "cross_attn_num_heads LFE_num_heads LFE_num_id_token LFE_num_querie"),
        **each(5, "LFE_depth LFE_num_scale"),
        **each(8, "cross_attn_dim_head LFE_dim_head LFE_id_dim"),
        **each(16, "LFE_vit_dim LFE_output_dim"),
        is_train_face=True,
    ),
    "mochi": denoiser(
        "MochiTransformer3DModel",
        **LAYERS,
        **each(16, "pooled_projection_dim text_embed_dim time_embed_dim"),
        max_sequence_length=8,
    ),
    "allegro": denoiser(
        "AllegroTransformer3DModel", **CAPTIONED, sample_height=8, sample_width=8, sample_frames=4
    ),
    "latte": denoiser(
        "LatteTransformer3DModel",
        **CAPTIONED,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=16,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    ),
    "ltx": denoiser("LTXVideoTransformer3DModel", **CAPTIONED),
    "ltx2": denoiser(
        "LTX2VideoTransformer3DModel",
        **CAPTIONED,
        **each(True, "gated_attn audio_gated_attn"),
        **each(4, "audio_in_channels audio_out_channels audio_attention_head_dim"),
        audio_num_attention_heads=2,
        audio_cross_attention_dim=8,
    ),
    "wan": denoiser("WanTransformer3DModel", **_WAN),
    "wan-i2v": denoiser("WanTransformer3DModel", **_WAN, image_dim=16, added_kv_proj_dim=16),
    "wan-vace": denoiser(
        "WanVACETransformer3DModel", **_WAN, vace_layers=[0, 1], vace_in_channels=4
    ),
    "skyreels": denoiser("SkyReelsV2Transformer3DModel", **_WAN),
    "cosmos": denoiser("CosmosTransformer3DModel", **_COSMOS),
    "cosmos-transfer": denoiser(
        "CosmosTransformer3DModel",
        **_COSMOS,
        **each(16, "img_context_dim_in img_context_dim_out"),
        img_context_num_tokens=4,
    ),
    "easyanimate": denoiser(
        "EasyAnimateTransformer3DModel",
        **LAYERS,
        **each(8, "sample_width sample_height"),
        **each(16, "time_embed_dim text_embed_dim"),
        patch_size=2,
        mmdit_layers=1,
    ),
    "sana-wm": denoiser(
        "SanaWMTransformer3DModel",
        **each(2, "num_layers num_attention_heads softmax_every_n chunk_plucker_post_attn_blocks"),
        **each(4, "in_channels chunk_plucker_channels"),
        **each(16, "hidden_size caption_channels"),
        linear_head_dim=8,
    ),
    "stable-audio": denoiser(
        "StableAudioDiTModel",
        **LAYERS,
        **each(16, "cross_attention_dim time_proj_dim"),
        **each(16, "global_states_input_dim cross_attention_input_dim"),
        sample_size=8,
        num_key_value_attention_heads=1,
    ),
    "stable-audio-3": denoiser(
        "StableAudio3DiTModel",
        **each(2, "depth num_heads num_memory_tokens"),
        **each(4, "io_channels local_add_cond_dim"),
        **each(16, "embed_dim cond_token_dim global_cond_dim timestep_features_dim"),
        ff_mult=1.0,
    ),
    "animatediff": denoiser(
        "UNetMotionModel",
        **_VIDEO_UNET,
        **each(2, "num_attention_heads motion_num_attention_heads"),
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    ),
    "text-to-video": denoiser(
        "UNet3DConditionModel",
        **_VIDEO_UNET,
        attention_head_dim=4,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
    ),
    "dance-diffusion": denoiser("UNet1DModel", **CHANNELS, sample_size=64),
}
