"""Choice of the number format for training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def autocast(device: torch.device) -> torch.autocast:
    """Half precision where it pays: small bf16 convolutions lose on a CPU without AMX."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Attention in plain products on a GPU, where the fused one fails.

    With a bias over 89 keys, in half precision, its backward pass ended in
    ``CUBLAS_STATUS_EXECUTION_FAILED`` on an H200 (PyTorch 2.11).
    """
    manager: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return nullcontext() if device.type == "cpu" else manager
