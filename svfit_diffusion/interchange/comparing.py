"""Whether what is read back from a file is what was meant, to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from svfit_diffusion.errors import InterchangeError, listed

Digests = dict[str, tuple[torch.dtype, torch.Size, str]]
"""Type, shape and SHA-256 of tensors, by name."""


def digests(tensors: Mapping[str, Tensor]) -> Digests:
    """What tells tensors from others, while they themselves need not stay in memory."""
    return {name: (t.dtype, t.shape, _sha256(t)) for name, t in tensors.items()}


def _sha256(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def refuse_differences(meant: Mapping[str, Digests], read: Mapping[str, Digests]) -> None:
    """Raise `InterchangeError` unless the same tensors were read as were meant, by component."""
    different = [
        f"{component}.{name}"
        for component, own in meant.items()
        for name in sorted(own.keys() | read[component].keys())
        if own.get(name) != read[component].get(name)
    ]
    if different:
        raise InterchangeError(
            listed(
                "nothing was written, since diffusers would read other weights than were meant",
                different,
            )
        )
