"""How the models of `tiny_families` are made: from a configuration alone, frozen, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import nn

Builder = Callable[[], nn.Module]


def each(value: Any, names: str) -> dict[str, Any]:
    """Settings that all have one value, by names between spaces."""
    return dict.fromkeys(names.split(), value)


# Nearly everywhere two heads of eight make a width of 16, and a position is spread over a head.
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = each(4, "in_channels out_channels")
LAYERS: dict[str, Any] = {**HEADS, **CHANNELS, "num_layers": 2}
CAPTIONED: dict[str, Any] = {**LAYERS, **each(16, "cross_attention_dim caption_channels")}
DOUBLE_SINGLE: dict[str, Any] = {**HEADS, "num_layers": 1, "num_single_layers": 2}
HUNYUAN: dict[str, Any] = {
    **DOUBLE_SINGLE,
    **CHANNELS,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
}
ROPE = (2, 2, 4)


def denoiser(class_name: str, **config: Any) -> Builder:
    """A builder of a model of diffusers; it skips the test where diffusers has none of that name.

    Weights are drawn from seed 0.
    """
    return lambda: _frozen(lambda: _class_of(diffusers, class_name)(**config))


def text_encoder(class_name: str, library: Any = transformers, **config: Any) -> Builder:
    """As `denoiser`, of a model of transformers; `config` is for its configuration class."""

    def make() -> nn.Module:
        model = _class_of(library, class_name)
        return model(model.config_class(**config))

    return lambda: _frozen(make)


def _class_of(library: Any, name: str) -> Any:
    if not hasattr(library, name):
        pytest.skip(f"{library.__name__} has no {name}")
    return getattr(library, name)


@torch.no_grad()
def _frozen(make: Builder) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    # Some classes leave weights uninitialised, or zero so that nothing passes through them.
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.normal_(mean=float(name.endswith("weight")), std=0.1)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)
