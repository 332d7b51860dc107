"""Large models with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.basis_by_rank import random_matrix
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum import cache
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import BaseWeights
from svfit_diffusion.spectrum.solver import solve

_TINY: dict[str, Any] = {
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
}


def flux(device: str, dtype: torch.dtype, blocks: tuple[int, int], small: bool) -> Any:
    """A transformer of FLUX.1's width, frozen, with falling singular values in its attention.

    Args:
        device: where it is made.
        dtype: of its weights, which are float16 numbers whatever it is.
        blocks: double and single ones.
        small: whether it is narrow instead.
    """
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        model = FluxTransformer2DModel(
            num_layers=blocks[0], num_single_layers=blocks[1], **(_TINY if small else {})
        )
    for seed, layer in enumerate(attention_layers(model).values()):
        layer.weight.data.copy_(falling(layer, device, seed))
    return model.requires_grad_(False).eval()


def falling(layer: Any, device: str, seed: int) -> Tensor:
    """A float16 weight for a layer, by its number."""
    return random_matrix(layer.out_features, layer.in_features, "falling", device, seed)


@contextmanager
def one_basis_for_each_shape() -> Iterator[None]:
    """While bases are computed: a weight gets that of the first of its shape, and none is kept."""
    known: dict[torch.Size, Basis] = {}

    def compute(base: BaseWeights, ranks: Mapping[str, Any], *_: Any) -> Iterator[Basis]:
        for path in ranks:
            matrix = base.matrix(path)
            if matrix.shape not in known:
                found = solve(matrix, ranks[path])
                known[matrix.shape] = found.to(torch.device("cpu"), torch.float16)
            yield known[matrix.shape]

    with patch.object(cache, "_compute", compute):
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
