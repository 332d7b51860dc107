"""Whether an accelerator has room for something more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch

_KEPT_FREE = 0.1
"""Share of an accelerator's memory that is left to what is computed there."""


def spare_bytes(device: torch.device) -> float:
    """Bytes that weights may still take on a device; below zero where it is short of memory.

    Memory that PyTorch holds for later counts as free. Other devices than CUDA's are not asked.
    """
    if device.type != "cuda":
        return math.inf
    free, total = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + idle - _KEPT_FREE * total


def has_room(sizes: Iterable[tuple[torch.device, int]], times: float = 1.0) -> bool:
    """Whether so many bytes fit beside all that is on their devices.

    Args:
        sizes: devices, and bytes wanted on each.
        times: how often.
    """
    needed: Counter[torch.device] = Counter()
    for device, size in sizes:
        needed[device] += size
    return all(times * size <= spare_bytes(device) for device, size in needed.items())
