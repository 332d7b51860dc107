"""Text encoders of every kind that pipelines of diffusers have, tiny; see `tiny_families`."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.kolors import text_encoder as kolors
from tiny import make_tiny_text_encoder
from tiny_builders import Builder, each, text_encoder

# Two layers of width 16, two heads of eight.
_BERT: dict[str, Any] = {
    "vocab_size": 64,
    **each(16, "hidden_size intermediate_size max_position_embeddings"),
    **each(2, "num_hidden_layers num_attention_heads"),
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {**_BERT, "num_key_value_heads": 1, "head_dim": 8}
_T5: dict[str, Any] = {
    "vocab_size": 64,
    **each(16, "d_model d_ff"),
    **each(2, "num_layers num_heads"),
    "d_kv": 8,
}
_SIGLIP: dict[str, Any] = {
    **each(16, "hidden_size intermediate_size image_size"),
    **each(2, "num_hidden_layers num_attention_heads"),
    "patch_size": 8,
}
_ROPE_3D: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],
}
_QWEN_VL: dict[str, Any] = {**_DECODER, "rope_parameters": _ROPE_3D}
_PIXTRAL: dict[str, Any] = {**_SIGLIP, "model_type": "pixtral", "head_dim": 8}

TEXT_ENCODERS: dict[str, Builder] = {
    "clip": make_tiny_text_encoder,
    "clip-g": text_encoder("CLIPTextModelWithProjection", **_BERT, projection_dim=16),
    "t5": text_encoder("T5EncoderModel", **_T5),
    "umt5": text_encoder("UMT5EncoderModel", **_T5),
    "t5gemma": text_encoder(
        "T5GemmaEncoderModel", encoder=_DECODER, decoder=_DECODER, is_encoder_decoder=False
    ),
    "gemma": text_encoder("GemmaModel", **_DECODER),
    "gemma2": text_encoder("Gemma2Model", **_DECODER),
    "gemma3": text_encoder(
        "Gemma3ForConditionalGeneration",
        text_config=_DECODER,
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
    ),
    "qwen2": text_encoder("Qwen2Model", **_DECODER),
    "qwen2-vl": text_encoder(
        "Qwen2VLForConditionalGeneration",
        text_config=_QWEN_VL,
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
    ),
    "qwen2.5-vl": text_encoder(
        "Qwen2_5_VLForConditionalGeneration",
        text_config=_QWEN_VL,
        vision_config={
            **each(2, "depth num_heads"),
            **each(16, "hidden_size intermediate_size out_hidden_size"),
        },
    ),
    "qwen3": text_encoder("Qwen3ForCausalLM", **_DECODER),
    "qwen3-vl": text_encoder(
        "Qwen3VLForConditionalGeneration",
        text_config=_QWEN_VL,
        vision_config={
            **each(2, "depth num_heads"),
            **each(16, "hidden_size intermediate_size out_hidden_size num_position_embeddings"),
            "deepstack_visual_indexes": [0],
        },
    ),
    "mistral": text_encoder("MistralModel", **_DECODER),
    "mistral3": text_encoder(
        "Mistral3ForConditionalGeneration",
        text_config={**_DECODER, "model_type": "mistral"},
        vision_config=_PIXTRAL,
    ),
    "llama": text_encoder("LlamaModel", **_DECODER),
    "smollm3": text_encoder("SmolLM3ForCausalLM", **_DECODER),
    "glm": text_encoder("GlmModel", **_DECODER),
    "bert": text_encoder("BertModel", **_BERT),
    "xlm-roberta": text_encoder("XLMRobertaModel", **_BERT),
    "clap": text_encoder("ClapTextModelWithProjection", **_BERT, projection_dim=16),
    "llava": text_encoder(
        "LlavaForConditionalGeneration",
        text_config={**_DECODER, "model_type": "llama"},
        vision_config={**_SIGLIP, "model_type": "clip_vision_model", "projection_dim": 16},
    ),
    "t5gemma2": text_encoder(
        "T5Gemma2Encoder",
        text_config={**_DECODER, "dropout_rate": 0.0},
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
    ),
    "chatglm": text_encoder(
        "ChatGLMModel",
        kolors,
        **each(16, "hidden_size ffn_hidden_size"),
        **each(2, "num_layers num_attention_heads multi_query_group_num"),
        kv_channels=8,
        padded_vocab_size=64,
        multi_query_attention=True,
        original_rope=True,
    ),
}
