"""Tiny language models that encode prompts, for `parts.byte_tokenizer`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from tiny_pipelines.parts import TEXT_WIDTH, VOCABULARY_SIZE, frozen


def decoder_settings(layers: int = 2) -> dict[str, Any]:
    """What the configurations of all these decoders have in common."""
    return {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        # The usual 0.02 leaves a narrow model next to nothing to say.
        "initializer_range": TEXT_WIDTH**-0.5,
    }


def qwen3(seed: int) -> Qwen3Model:
    """A Qwen3."""
    torch.manual_seed(seed)
    return frozen(Qwen3Model(Qwen3Config(**decoder_settings())))


def qwen3_lm(seed: int, layers: int) -> Qwen3ForCausalLM:
    """A Qwen3 with its head."""
    torch.manual_seed(seed)
    return frozen(Qwen3ForCausalLM(Qwen3Config(**decoder_settings(layers))))


def gemma2(seed: int) -> Gemma2Model:
    """A Gemma 2."""
    torch.manual_seed(seed)
    return frozen(Gemma2Model(Gemma2Config(**decoder_settings(), sliding_window=64)))


def llama(seed: int) -> LlamaForCausalLM:
    """A Llama with its head."""
    torch.manual_seed(seed)
    return frozen(LlamaForCausalLM(LlamaConfig(**decoder_settings())))


def mistral3(seed: int, layers: int) -> Mistral3ForConditionalGeneration:
    """A Mistral 3 that has never seen an image."""
    torch.manual_seed(seed)
    config = Mistral3Config(
        text_config={"model_type": "mistral", **decoder_settings(layers)},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
    )
    return frozen(Mistral3ForConditionalGeneration(config))


def qwen2_5_vl(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL that has never seen an image."""
    torch.manual_seed(seed)
    settings = decoder_settings()
    del settings["head_dim"]
    text = settings | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return frozen(Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl(seed: int, layers: int) -> Qwen3VLModel:
    """A Qwen3-VL that has never seen an image, of a single head."""
    torch.manual_seed(seed)
    text = decoder_settings(layers) | {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "deepstack_visual_indexes": [],
    }
    return frozen(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)))
