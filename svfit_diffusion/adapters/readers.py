"""The layers of a denoiser that read the text, and thus a subject's own word beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from svfit_diffusion.errors import ConfigError, StateError

_TEXTS = ("encoder_hidden_states", "cap_feats")
"""What diffusers calls the text in calls of denoisers and of their blocks."""
_SEQUENCES = ("hidden_states", "x")
"""The picture with the text, in blocks that have one sequence for both."""
_PICTURE_MULTIPLE = 32
"""Z-Image pads a picture to so many tokens before the text (its SEQ_MULTI_OF)."""


@dataclass(frozen=True)
class _Stream:
    """Of a transformer whose text goes along with the picture.

    Attributes:
        encoder: the pipeline's component that makes the text.
        layers: of that, whose states the text may begin with, beside the last.
        width: what its configuration calls the text's width, if it says so.
        blocks: its lists of blocks that have both.
    """

    encoder: str = "text_encoder"
    layers: tuple[int, ...] = ()
    width: str | None = None
    blocks: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")


_STREAMS: dict[str, _Stream] = {
    "FluxTransformer2DModel": _Stream("text_encoder_2"),
    "ChromaTransformer2DModel": _Stream(),
    # Its first of three layers, in dev and in klein.
    "Flux2Transformer2DModel": _Stream(layers=(10, 9)),
    "SD3Transformer2DModel": _Stream("text_encoder_3"),
    "QwenImageTransformer2DModel": _Stream(),
    "OvisImageTransformer2DModel": _Stream(),
    "AuraFlowTransformer2DModel": _Stream(
        blocks=("joint_transformer_blocks", "single_transformer_blocks")
    ),
    # Its first of twelve layers.
    "Krea2Transformer2DModel": _Stream(layers=(2,)),
    "Lumina2Transformer2DModel": _Stream(layers=(-2,), width="hidden_size", blocks=("layers",)),
    "ZImageTransformer2DModel": _Stream(layers=(-2,), width="dim", blocks=("layers",)),
}

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
        stream = _STREAMS[kind]
        width = config[stream.width] if stream.width else _inner_width(config)
        return Readers(_blocks(denoiser, stream), 1, width, stream.encoder, stream.layers)
    raise ConfigError(
        f"a word of the subject's own (train_identifier) is for Stable Diffusion 1, 2, XL and 3, "
        f"FLUX.1 and FLUX.2, Qwen-Image, Z-Image, Chroma, Lumina 2, Ovis-Image, Krea 2, AuraFlow, "
        f"PixArt and Sana; where a {kind} of this kind reads the text is not known"
    )


def _values(denoiser: nn.Module) -> tuple[str, ...]:
    return tuple(path for path, _ in denoiser.named_modules() if path.endswith("attn2.to_v"))


def _blocks(denoiser: nn.Module, stream: _Stream) -> tuple[str, ...]:
    return tuple(
        f"{name}.{i}" for name in stream.blocks for i in range(len(getattr(denoiser, name, ())))
    )


def _inner_width(config: Any) -> int:
    return int(config.num_attention_heads * config.attention_head_dim)


def text_in(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The text in a call of a denoiser, `(batch, tokens, width)` with zeros behind those that are
    shorter; None if it has none.

    Raises:
        StateError: it has several for a picture.
    """
    at = _place(model, args, kwargs, _TEXTS)
    if at is None:
        return None
    given: Any = _at(args, kwargs, at)
    if isinstance(given, Tensor):
        return given.flatten(2)  # some stack layers
    if not all(isinstance(text, Tensor) for text in given):
        raise StateError(
            "cannot draw from pictures with adapters that have a word of the subject's own: where "
            "several texts lie among pictures is not known; draw from a prompt alone"
        )
    return pad_sequence(given, batch_first=True)


def tokens_before_text(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many tokens of other kinds a denoiser's blocks have before the text in a call.

    Raises:
        StateError: the pictures of the call are of several sizes.
    """
    registers: Tensor | None = getattr(model, "register_tokens", None)
    if registers is not None:
        return registers.shape[1]
    at = _place(model, args, kwargs, ("x",))
    if at is None:
        return 0
    # Z-Image's pictures `(channels, frames, height, width)`, in tokens of 1 x 2 x 2.
    sizes = {tuple(picture.shape[1:]) for picture in _at(args, kwargs, at)}
    if len(sizes) > 1:
        raise StateError(
            f"cannot draw pictures of several sizes in one call, {sorted(sizes)}, with adapters "
            f"that have a word of the subject's own: draw them one size after the other"
        )
    ((frames, height, width),) = sizes
    tokens: int = frames * (height // 2) * (width // 2)
    return tokens + -tokens % _PICTURE_MULTIPLE


def with_changed_text(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of something that reads a text, with that changed.

    What is changed, `(batch, tokens, width)`, is the text, or the sequence that it lies in where a
    block has one for text and picture, or all that a layer of values is given.
    """
    at = _place(module, args, kwargs, _TEXTS)
    if at is None:
        at = _place(module, args, kwargs, _SEQUENCES)
    if at is None:
        at = 0
    changed = change(_at(args, kwargs, at))
    if isinstance(at, str):
        return args, {**kwargs, at: changed}
    return (*args[:at], changed, *args[at + 1 :]), kwargs


def _place(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]
) -> int | str | None:
    """Where a call has an argument of one of these names: its name, its position, or nowhere."""
    parameters = list(inspect.signature(module.forward).parameters)
    for name in names:
        if kwargs.get(name) is not None:
            return name
        at = parameters.index(name) if name in parameters else len(args)
        if at < len(args) and args[at] is not None:
            return at
    return None


def _at(args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str) -> Any:
    return kwargs[place] if isinstance(place, str) else args[place]
