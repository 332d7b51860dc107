"""The layers of a denoiser that read the text, and thus a subject's own word beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.errors import ConfigError

TEXT = "encoder_hidden_states"
"""What diffusers calls the text in calls of denoisers and of their blocks."""
_SEQUENCE = "hidden_states"
"""The picture, behind the text in blocks that have one sequence for both."""

_STREAMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "FluxTransformer2DModel": ("text_encoder_2", ()),
    "ChromaTransformer2DModel": ("text_encoder", ()),
    # Its first of three layers, in dev and in klein.
    "Flux2Transformer2DModel": ("text_encoder", (10, 9)),
    "SD3Transformer2DModel": ("text_encoder_3", ()),
    "QwenImageTransformer2DModel": ("text_encoder", ()),
}
"""Transformers whose text goes along with the picture, and what makes it."""

_CROSS_ATTENTION = ("PixArtTransformer2DModel", "SanaTransformer2DModel")
"""Transformers that read the text as a UNet does."""


@dataclass(frozen=True)
class Readers:
    """What reads the text in a denoiser.

    A transformer's text goes along with the picture from block to block, and what its tokens say
    reaches the word after them. In a UNet each layer reads the text anew: the word after the
    identifier, which names the class, gets vectors of its own there, and only values are changed,
    not keys, so that it is still looked at where the thing is (key-locking, arXiv 2305.01644).

    Attributes:
        paths: of the modules, each of which reads it once.
        places: 1 for the identifier's tokens, 2 for the token after them too.
        width: of the text as they read it.
        encoder: the pipeline's component that makes the text.
        layers: of that, whose states the text may begin with, beside the last.
    """

    paths: tuple[str, ...]
    places: int
    width: int
    encoder: str
    layers: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a word's vectors."""
        return len(self.paths), self.places, self.width


def readers_of(denoiser: nn.Module) -> Readers:
    """What reads the text in a denoiser of a kind that is known.

    Raises:
        ConfigError: it is another model.
    """
    config: Any = getattr(denoiser, "config", None)
    kind = type(denoiser).__name__
    if kind == "UNet2DConditionModel" and config.addition_embed_type in (None, "text_time"):
        values = _values(denoiser)
        if values and isinstance(config.cross_attention_dim, int):
            return Readers(values, 2, config.cross_attention_dim, "text_encoder", (-2,))
    elif kind in _CROSS_ATTENTION:
        return Readers(_values(denoiser), 2, _inner_width(config), "text_encoder")
    elif kind in _STREAMS:
        encoder, layers = _STREAMS[kind]
        return Readers(_blocks(denoiser), 1, _inner_width(config), encoder, layers)
    raise ConfigError(
        f"a word of the subject's own (train_identifier) is for Stable Diffusion 1, 2, XL and 3, "
        f"FLUX.1 and FLUX.2, Qwen-Image, Chroma, PixArt and Sana; where a {kind} of this kind "
        f"reads the text is not known"
    )


def _values(denoiser: nn.Module) -> tuple[str, ...]:
    return tuple(path for path, _ in denoiser.named_modules() if path.endswith("attn2.to_v"))


def _blocks(denoiser: nn.Module) -> tuple[str, ...]:
    return tuple(
        f"{name}.{i}"
        for name in ("transformer_blocks", "single_transformer_blocks")
        for i in range(len(getattr(denoiser, name, ())))
    )


def _inner_width(config: Any) -> int:
    return int(config.num_attention_heads * config.attention_head_dim)


def text_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The text in a call of a denoiser or of one of its blocks; None if it has none of its own."""
    text: Tensor | None = _given(module, args, kwargs, TEXT)
    return text


def with_changed_text(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tokens: int,
    change: Callable[[Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of something that reads a text, with that changed.

    The text `(batch, tokens, width)` is the beginning of the picture's sequence where a block has
    one for both, and of a layer of values all that it is given.
    """
    text = text_in(module, args, kwargs)
    if text is not None:
        return _with(module, args, kwargs, TEXT, change(text))
    sequence = _given(module, args, kwargs, _SEQUENCE)
    if sequence is None:
        return (change(args[0]), *args[1:]), kwargs
    both = torch.cat([change(sequence[:, :tokens]), sequence[:, tokens:]], dim=1)
    return _with(module, args, kwargs, _SEQUENCE, both)


def _given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """An argument of a call by its name, or None."""
    if name in kwargs:
        return kwargs[name]
    at = _position(module, name)
    return args[at] if at is not None and at < len(args) else None


def _with(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with another value of an argument that it has."""
    at = _position(module, name)
    if name in kwargs or at is None:
        return args, {**kwargs, name: value}
    return (*args[:at], value, *args[at + 1 :]), kwargs


def _position(module: nn.Module, name: str) -> int | None:
    names = list(inspect.signature(module.forward).parameters)
    return names.index(name) if name in names else None
