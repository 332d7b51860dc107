"""Toybox-Flow's parts in FLUX.1's format, and the forward pass as `FluxPipeline` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .compose import LATENT_SIZE
from .tokenizer import MAX_LENGTH

CLOSE = 5
"""How far, in tokens, a layer of the sequence encoder looks to either side."""

_FAR_BIAS = -1000.0
_EMBEDDING_STD = 0.3


@dataclass(frozen=True)
class Shape:
    """Sizes of the parts.

    Attributes:
        channels: of the latents.
        heads, head_width: of the transformer, which is as wide as their product.
        double, single: numbers of its blocks.
        text_width, text_layers: of both text encoders.
    """

    channels: int = 16
    heads: int = 8
    head_width: int = 32
    double: int = 2
    single: int = 8
    text_width: int = 192
    text_layers: int = 2


def new_transformer(shape: Shape) -> FluxTransformer2DModel:
    """A transformer whose blocks all start as the identity, and whose output starts at zero."""
    down = shape.head_width // 8 * 3
    transformer = FluxTransformer2DModel(
        in_channels=4 * shape.channels,
        num_layers=shape.double,
        num_single_layers=shape.single,
        attention_head_dim=shape.head_width,
        num_attention_heads=shape.heads,
        joint_attention_dim=shape.text_width,
        pooled_projection_dim=shape.text_width,
        guidance_embeds=True,
        axes_dims_rope=(shape.head_width - 2 * down, down, down),
    )
    ends = [transformer.proj_out, transformer.norm_out.linear]
    for name, module in transformer.named_modules():
        if name.endswith((".norm.linear", ".norm1.linear", ".norm1_context.linear")):
            ends.append(module)
    for end in ends:
        for parameter in end.parameters():
            nn.init.zeros_(parameter)
    return transformer


def new_pooled_encoder(tokenizer: CLIPTokenizer, shape: Shape) -> CLIPTextModel:
    """A CLIP text model, its token embeddings wide apart from the start."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=2 * shape.text_width,
        projection_dim=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    model = CLIPTextModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=_EMBEDDING_STD)
    return model


def new_sequence_encoder(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> T5EncoderModel:
    """A T5 encoder that looks only a few tokens far.

    `FluxPipeline` pads every prompt, to 512 tokens unless told otherwise, and masks no padding.
    With a bias that rules out whatever is far, padding far from the text is the same at every
    place and for every prompt, and the text hears nothing of it.
    """
    exact = 4
    assert exact < CLOSE
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.text_width,
        d_kv=32,
        d_ff=2 * shape.text_width,
        num_layers=shape.text_layers,
        num_heads=shape.text_width // 32,
        # Half the buckets for each side: half of these for one distance each, the last for all
        # from `CLOSE + 1` on.
        relative_attention_num_buckets=4 * exact,
        relative_attention_max_distance=CLOSE + 1,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = T5EncoderModel(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=_EMBEDDING_STD)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    with torch.no_grad():
        bias.weight[[2 * exact - 1, 4 * exact - 1]] = _FAR_BIAS
    return model


@dataclass
class Conditions:
    """What the transformer is told of prompts.

    Attributes:
        pooled: by the pooled encoder, `(n, width)`.
        text: by the sequence encoder, `(n, MAX_LENGTH + 1, width)`; the last token stands for all
            further padding.
    """

    pooled: Tensor
    text: Tensor

    def __getitem__(self, rows: Any) -> Conditions:
        return Conditions(self.pooled[rows], self.text[rows])


class FlowModel:
    """Transformer and text encoders, which learn together.

    Attributes:
        transformer: predicts the velocity.
        pooled_encoder: CLIP.
        sequence_encoder: T5.
        tokenizer: of the pooled encoder.
        sequence_tokenizer: of the sequence encoder.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, sequence_tokenizer: PreTrainedTokenizerFast, shape: Shape
    ) -> None:
        self.shape = shape
        self.tokenizer, self.sequence_tokenizer = tokenizer, sequence_tokenizer
        self.transformer = new_transformer(shape)
        self.pooled_encoder = new_pooled_encoder(tokenizer, shape)
        self.sequence_encoder = new_sequence_encoder(sequence_tokenizer, shape)
        edge = LATENT_SIZE // 2
        device, dtype = torch.device("cpu"), torch.float32
        self._empty = self.tokenise([""])
        self._places = FluxPipeline._prepare_latent_image_ids(1, edge, edge, device, dtype)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that learn."""
        return {
            "transformer": self.transformer,
            "pooled": self.pooled_encoder,
            "sequence": self.sequence_encoder,
        }

    def to(self, device: torch.device) -> FlowModel:
        """Move everything."""
        for module in self.modules.values():
            module.to(device)
        self._places = self._places.to(device)
        pooled, sequence = self._empty
        self._empty = pooled.to(device), sequence.to(device)
        return self

    def tokenise(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token indices for the pooled and for the sequence encoder, `(n, length)` each."""
        lengths = (MAX_LENGTH, self.sequence_length)
        pooled, sequence = (
            tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids
            for tokenizer, length in zip(
                (self.tokenizer, self.sequence_tokenizer), lengths, strict=True
            )
        )
        return torch.tensor(pooled, dtype=torch.int16), torch.tensor(sequence, dtype=torch.int16)

    @property
    def sequence_length(self) -> int:
        """Tokens after which more padding changes nothing in the first `MAX_LENGTH`."""
        return MAX_LENGTH + CLOSE * self.shape.text_layers

    def encode(self, pooled: Tensor, sequence: Tensor) -> Conditions:
        """Encode tokens as `tokenise` makes them."""
        hidden = self.sequence_encoder(sequence.long()).last_hidden_state
        text = torch.cat([hidden[:, :MAX_LENGTH], hidden[:, -1:]], dim=1)
        return Conditions(self.pooled_encoder(pooled.long()).pooler_output, text)

    def encode_empty(self) -> Conditions:
        """Of one empty prompt."""
        return self.encode(*self._empty)

    def velocity(
        self,
        tokens: Tensor,
        noise_levels: Tensor,
        guidance: Tensor,
        conditions: Conditions,
        padding: Tensor,
    ) -> Tensor:
        """Predict noise minus picture.

        Args:
            tokens: packed noisy latents `(n, 64, 4 * channels)`.
            noise_levels: in [0, 1], `(n,)`.
            guidance: scales for the guidance embedding, `(n,)`.
            conditions: of `n` prompts.
            padding: how many tokens of padding the last one of the text stands for, `()`.
        """
        count = conditions.text.shape[1]
        # So many equal keys weigh as much as one whose logit is larger by their logarithm.
        bias = tokens.new_zeros(1, 1, 1, count + tokens.shape[1])
        bias[..., count - 1] = padding.log()
        output: Tensor = self.transformer(
            hidden_states=tokens,
            timestep=noise_levels,
            guidance=guidance,
            pooled_projections=conditions.pooled,
            encoder_hidden_states=conditions.text,
            txt_ids=tokens.new_zeros(count, 3),
            img_ids=self._places,
            joint_attention_kwargs={"attention_mask": bias},
            return_dict=False,
        )[0]
        return output


def pack(latents: Tensor) -> Tensor:
    """Latents `(n, channels, h, w)` as tokens `(n, h * w / 4, 4 * channels)`."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed
