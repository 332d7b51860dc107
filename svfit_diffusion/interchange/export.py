"""What an export says of the file or folder it wrote, and the types it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from svfit_diffusion.errors import InterchangeError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Export:
    """A file or a folder that was written.

    Attributes:
        path: where it is.
        size: in bytes.
        rank: the largest rank of a layer's change.
        error: what was dropped of the change of all layers together, as a share of its norm;
            without the rounding of the file's dtype.
        errors: the same of each layer, by `<component>.<module path>`.
    """

    path: Path
    size: int
    rank: int
    error: float
    errors: dict[str, float]


def check_dtype(dtype: torch.dtype) -> None:
    """Raise `InterchangeError` for a dtype that not all readers take."""
    if dtype not in _DTYPES:
        raise InterchangeError(f"dtype must be float16, bfloat16 or float32, got {dtype}")
