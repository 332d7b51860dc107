"""Choice of the number format for training."""

from __future__ import annotations

import torch


def autocast(device: torch.device) -> torch.autocast:
    """Half precision where it pays: small bf16 convolutions lose on a CPU without AMX."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
