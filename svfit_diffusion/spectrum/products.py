"""Matrix products, by the faster of PyTorch's two libraries on CPUs.

PyTorch multiplies matrices with MKL, which leaves the AVX-512 units of other makers' processors
idle, and convolves with oneDNN, which does not. A product is a convolution with a kernel of one
position: on an AMD EPYC of 2025 that takes half the time (`benchmarks/NOTES.md`). Which library is
used depends on machine and shapes alone, so results are reproducible on one machine.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

_WORTHWHILE = 2**24
"""Multiply-adds from which on the detour pays for itself."""


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """`a b` of matrices `(n, k)` and `(k, m)` of one dtype; float32 sums in float32."""
    if _convolves(a, b):
        return F.conv1d(b[None], a[:, :, None])[0]
    return a @ b


def multiply_transposed(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ` of matrices `(n, k)` and `(m, k)` of one dtype; float32 sums in float32."""
    if _convolves(a, b):
        # Rows of `a` as pixels, their entries as channels, which lie innermost already.
        pixels = a.reshape(1, 1, *a.shape).permute(0, 3, 1, 2)
        return F.conv2d(pixels, b[:, :, None, None]).permute(0, 2, 3, 1)[0, 0]
    return a @ b.mT


def add_product(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add `a b` to a matrix `(n, m)` in its own place, and return it; all are of one dtype.

    Accelerators do so in the product itself, without a matrix more and a pass over it.
    """
    if not a.shape[1]:
        return base
    return base.add_(multiply(a, b)) if base.device.type == "cpu" else base.addmm_(a, b)


def _convolves(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape[0] * b.numel() >= _WORTHWHILE
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and _onednn_is_faster()
    )


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether MKL multiplies here, on a processor that it was not made for, and oneDNN is there."""
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return libraries and "Intel" not in _processor_maker()


def _processor_maker() -> str:
    table = Path("/proc/cpuinfo")
    return table.read_text() if table.exists() else platform.processor()
