"""The layers of a denoiser that read the text, and thus a subject's own word beside it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from svfit_diffusion.errors import ConfigError

TEXT = "encoder_hidden_states"
"""What diffusers calls the text in calls of denoisers and of their blocks."""


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
    """

    paths: tuple[str, ...]
    places: int
    width: int
    encoder: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a word's vectors."""
        return len(self.paths), self.places, self.width


def readers_of(denoiser: nn.Module) -> Readers:
    """What reads the text in the UNets of Stable Diffusion 1, 2 and XL, and FLUX.1's transformer.

    Raises:
        ConfigError: it is another model.
    """
    config: Any = getattr(denoiser, "config", None)
    kind = type(denoiser).__name__
    if kind == "UNet2DConditionModel" and config.addition_embed_type in (None, "text_time"):
        values = tuple(p for p, _ in denoiser.named_modules() if p.endswith("attn2.to_v"))
        if values and isinstance(config.cross_attention_dim, int):
            return Readers(values, 2, config.cross_attention_dim, "text_encoder")
    if kind == "FluxTransformer2DModel":
        blocks = tuple(
            f"{name}.{i}"
            for name in ("transformer_blocks", "single_transformer_blocks")
            for i in range(len(denoiser.get_submodule(name)))  # type: ignore[arg-type]
        )
        width = config.num_attention_heads * config.attention_head_dim
        return Readers(blocks, 1, width, "text_encoder_2")
    raise ConfigError(
        f"a word of the subject's own (train_identifier) is for Stable Diffusion 1, 2 and XL and "
        f"for FLUX.1; where a {kind} of this kind reads the text is not known"
    )


def text_in(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The text in a call of a denoiser, or of something in it that reads it."""
    text: Tensor | None = kwargs[TEXT] if TEXT in kwargs else _get(args, _position(module))
    return text


def with_text(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], text: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another text."""
    if TEXT in kwargs:
        return args, {**kwargs, TEXT: text}
    at = _position(module)
    return (*args[:at], text, *args[at + 1 :]), kwargs


def _position(module: nn.Module) -> int:
    """Where a module's call has the text: first, if it is a layer of values."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index(TEXT) if TEXT in names else 0


def _get(args: tuple[Any, ...], at: int) -> Any:
    return args[at] if at < len(args) else None
