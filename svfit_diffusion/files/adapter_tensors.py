"""The tensors of an adapter file: their names, and what keeps tensors from being an adapter's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

VALUES = ".delta"
POSITIONS = ".index"
SKETCH = ".sketch"
WORD = ".word"
MAX_SHIFT = 65504.0
"""Largest shift that is taken, the largest float16. A shift changes no entry of a weight by more
than its largest value; weights that can be decomposed are float16s, so beyond that lies no finite
model. Training moves σ by some learning rates' worth of steps, seldom above 10.
"""

_SKETCH_LENGTH = 4
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def problems_in(tensors: Mapping[Any, Any], components: Collection[str]) -> Iterator[str]:
    """What keeps named tensors from being an adapter."""
    for name, tensor in tensors.items():
        layer, suffix = split_suffix(str(name))
        component, _, path = layer.partition(".")
        is_sketch = suffix == SKETCH and not path
        is_word = suffix == WORD and not path
        is_layer = suffix in (VALUES, POSITIONS) and path
        if component not in components or not (is_sketch or is_word or is_layer):
            yield f"unknown key {name!r}"
        elif not isinstance(tensor, Tensor):
            yield f"{name!r} is a {type(tensor).__name__}, expected a tensor"
        elif is_sketch:
            yield from _problems_of_sketch(name, tensor)
        elif is_word:
            yield from _problems_of_word(name, tensor)
        elif suffix == POSITIONS:
            yield from _problems_of_index(name, tensor, tensors.get(layer + VALUES))
        elif tensor.dim() != 1 or not tensor.numel() or tensor.dtype not in _FLOATS:
            yield f"{name!r} is {tuple(tensor.shape)} {tensor.dtype}, expected a float vector (r,)"
        else:
            yield from _problems_of_values(name, tensor)


def _problems_of_values(name: str, values: Tensor) -> Iterator[str]:
    largest = float(values.float().abs().max())  # NaN if one is
    if not math.isfinite(largest):
        yield f"{name!r} holds NaN or infinite values"
    elif largest > MAX_SHIFT:
        yield f"{name!r} holds a shift of {largest:.3g}, beyond the ±{MAX_SHIFT:g} of any model"


def _problems_of_sketch(name: str, rows: Tensor) -> Iterator[str]:
    if rows.dim() != 2 or rows.shape[-1] != _SKETCH_LENGTH or rows.dtype not in _FLOATS:
        yield f"{name!r} is {tuple(rows.shape)} {rows.dtype}, expected (layers, {_SKETCH_LENGTH})"
    elif not torch.isfinite(rows.float()).all():
        yield f"{name!r} holds NaN or infinite values"


def _problems_of_word(name: str, vectors: Tensor) -> Iterator[str]:
    if vectors.dim() != 3 or not vectors.numel() or vectors.dtype not in _FLOATS:
        yield (
            f"{name!r} is {tuple(vectors.shape)} {vectors.dtype}, expected (readers, places, width)"
        )
    else:
        yield from _problems_of_values(name, vectors)


def _problems_of_index(name: str, index: Tensor, values: Any) -> Iterator[str]:
    """What keeps a tensor from holding the positions of `values`."""
    if not isinstance(values, Tensor):
        yield f"{name!r} has no {VALUES!r} vector beside it"
    elif index.dtype != torch.int16 or index.dim() != 1 or index.shape != values.shape:
        yield (
            f"{name!r} is {tuple(index.shape)} {index.dtype}, expected an int16 vector of as many "
            f"positions as its {VALUES!r} has values, {tuple(values.shape)}"
        )
    elif (index < 0).any() or (index.diff() <= 0).any():
        yield f"{name!r} holds positions that do not ascend from 0 or more"


def split_suffix(name: str) -> tuple[str, str]:
    """A tensor's name as `<component>.<module path>` and the suffix that says what it holds."""
    layer, dot, kind = name.rpartition(".")
    return layer, dot + kind
