"""Whether diffusers reads from a file what was meant to be in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from svfit_diffusion.errors import InterchangeError, listed
from svfit_diffusion.interchange.factors import Factors
from svfit_diffusion.interchange.reading import read_lora

_FAINT = 1e-3
"""Share of the strongest layer's change below which a layer's error is measured against that, since
float16 rounds the faintest changes coarsely.
"""


def check_reading(
    pipe: Any, file: Path, changes: Mapping[str, Factors], dtype: torch.dtype
) -> None:
    """Raise `InterchangeError` unless diffusers' loader finds exactly these changes in a file.

    Args:
        pipe: a pipeline of the base.
        file: the LoRA.
        changes: what was meant, by `<component>.<module path>`.
        dtype: of the file. Either factor is rounded by half its ε, so `ΔW` by about ε; 4 ε are
            allowed, and 1e-5 for products in float32.
    """
    found = read_lora(pipe, file)
    problems = [f"{name} is not read" for name in changes if name not in found]
    problems += [f"{name} is read, but was not written" for name in found if name not in changes]
    allowed = max(4 * torch.finfo(dtype).eps, 1e-5)
    strongest = max(change.norm for change in changes.values())
    for name in [name for name in changes if name in found]:
        meant, read = changes[name].matrix, found[name].matrix
        if meant.shape != read.shape:
            problems.append(f"{name} is {tuple(read.shape)}, expected {tuple(meant.shape)}")
            continue
        norm = max(float(meant.norm()), _FAINT * strongest)
        if not float((read - meant).norm()) <= allowed * norm:
            problems.append(f"{name} is read as another change, too far from what was meant")
    if problems:
        raise InterchangeError(
            listed(
                "nothing was written, since diffusers' own loader does not read the file as it was "
                "meant (a component that it takes no LoRA for, or a version of diffusers that "
                "reads this form otherwise)",
                problems,
            )
        )
