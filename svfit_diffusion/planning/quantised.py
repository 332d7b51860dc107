"""Bytes of a denoiser that is quantised while it is loaded, and of what its kernels keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from torch import Tensor, nn

_BLOCK = 64
"""Weights of one float32 scale in bitsandbytes' nf4."""
_FLOAT32 = 4
_FREE_OF_COPIES = ("nf4", "int8")
"""bitsandbytes alone makes a weight dense once more in the backward pass; the others keep it."""


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of tensors, each counted once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return bytes_of((*model.parameters(), *model.buffers()))


def quantised_bytes(model: nn.Module, quantization: str) -> int:
    """Bytes of a model's parameters and buffers, quantised.

    Args:
        model: in the precision of the run, of any device.
        quantization: one of `training.quantization.QUANTIZATIONS`.
    """
    return model_bytes(model) - sum(
        layer.weight.nbytes - _weight_bytes(layer, quantization)
        for layer in _quantised(model, quantization)
    )


def dense_bytes(model: nn.Module, quantization: str, *, checkpointing: bool) -> int:
    """Bytes of the dense weights that kernels keep until the backward pass; with gradient
    checkpointing of those of the largest block, while it is computed again.
    """
    if quantization in _FREE_OF_COPIES:
        return 0
    of_layers: dict[nn.Module, int] = {
        layer: layer.weight.nbytes for layer in _quantised(model, quantization)
    }
    if not checkpointing:
        return sum(of_layers.values())
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks = [[of_layers.get(m, 0) for m in block.modules()] for own in lists for block in own]
    return max(map(sum, blocks), default=0)


def _quantised(model: nn.Module, quantization: str) -> Iterator[nn.Linear]:
    for path, layer in model.named_modules():
        skipped = quantization == "fp8" and any(
            re.search(pattern, path) for pattern in DEFAULT_SKIP_MODULES_PATTERN
        )
        if isinstance(layer, nn.Linear) and not skipped:
            yield layer


def _weight_bytes(layer: nn.Linear, quantization: str) -> int:
    count, rows, size = layer.weight.numel(), layer.out_features, layer.weight.element_size()
    if quantization == "nf4":
        return -(-count // 2) + _FLOAT32 * -(-count // _BLOCK)
    scales = {"int8": _FLOAT32, "torchao_int8": size, "torchao_float8": _FLOAT32, "fp8": 0}
    return count + rows * scales[quantization]
