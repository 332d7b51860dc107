"""Models whose Linear layers are quantised by the libraries that people quantise with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import quantising
from svfit_diffusion.adapters.quantised import dense_weight

KINDS = tuple(kind for kind in quantising.WAYS if kind != "GGUF Q4_0")
ROUNDED_INPUTS = "bitsandbytes int8"
"""Its kernel rounds a row of inputs to 8 bits, too: 1/254 of its largest."""
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def quantise(model: nn.Module, kind: str, among: str = "transformer_blocks") -> Any:
    """`quantising.quantise`; a test of what is not installed is skipped."""
    try:
        return quantising.quantise(model, kind, among)
    except ImportError as error:
        pytest.skip(f"{kind}: {error}")


def is_quantised(layer: Any) -> bool:
    """Whether `quantise` has been at a layer."""
    weight = layer.weight
    return type(weight) is not nn.Parameter or weight.dtype == quantising.FLOAT8


def computed_weight(layer: Any) -> Tensor:
    """What a quantised Linear multiplies by, found by multiplying."""
    with torch.no_grad():
        found = layer(torch.eye(layer.in_features)) - layer(torch.zeros(1, layer.in_features))
    return found.mT.contiguous()


def dequantised(model: nn.Module, plain: nn.Module) -> Any:
    """`plain`, which `model` was before it was quantised, with the weights that stand for those of
    `model` now; `dense_weight` is tested by itself.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and is_quantised(layer):
            target: Any = plain.get_submodule(path)
            target.weight.data = dense_weight(layer, layer.weight)
            if layer.bias is not None:  # layerwise casting casts it, too
                target.bias.data = layer.bias.data.float().clone()
    return plain
