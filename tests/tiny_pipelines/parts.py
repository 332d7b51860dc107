"""Tokenizers, text encoders and autoencoders from which tiny pipelines are put together."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_WIDTH = 32
SPECIAL_TOKENS = ("<pad>", "</s>", "<s>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)

# ChatML, for content that is a string or a list of parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def frozen(model: Any) -> Any:
    """The model in eval mode, without gradients."""
    return model.eval().requires_grad_(False)


def byte_tokenizer(*, begins: bool = False, ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and a few special tokens, with a chat template.

    Args:
        begins: put `<s>` before a text, as Gemma and Llama do.
        ends: put `</s>` after it, as T5 does.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins or ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{'<s> ' * begins}$A{' </s>' * ends}",
            special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
        model_max_length=2048,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def clip(seed: int, length: int = 16) -> CLIPTextModelWithProjection:
    """A CLIP with a projection, of three layers, for `tiny.make_tiny_tokenizer`."""
    torch.manual_seed(seed)
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=length,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    # CLIP's initialisation makes queries and keys of 1e-2: too small to see a shift of them.
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            nn.init.normal_(parameter, std=TEXT_WIDTH**-0.5)
    return frozen(model)


def t5(seed: int, width: int = TEXT_WIDTH) -> T5EncoderModel:
    """A T5 encoder of one layer, for `byte_tokenizer(ends=True)`."""
    torch.manual_seed(seed)
    return frozen(T5EncoderModel(T5Config(**_t5_settings(width))))


def umt5(seed: int) -> UMT5EncoderModel:
    """A UMT5 encoder of one layer, for `byte_tokenizer(ends=True)`."""
    torch.manual_seed(seed)
    return frozen(UMT5EncoderModel(UMT5Config(**_t5_settings(TEXT_WIDTH))))


def _t5_settings(width: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY_SIZE,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * TEXT_WIDTH,
        "num_layers": 1,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def vae(seed: int, levels: int = 2, **overrides: Any) -> AutoencoderKL:
    """An autoencoder of four channels that halves each side `levels − 1` times."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "block_out_channels": (16,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return frozen(AutoencoderKL(**settings | overrides))
