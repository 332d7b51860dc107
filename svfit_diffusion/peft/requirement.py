"""PEFT, as new as the plug-in needs it."""

from __future__ import annotations

import re
from importlib import metadata

from svfit_diffusion.errors import PackageError

OLDEST = (0, 21)
"""Since then saving and loading are methods of the tuner, which others can bring along."""


def require_peft() -> None:
    """Raise `PackageError` if PEFT is missing or too old."""
    oldest = ".".join(map(str, OLDEST))
    try:
        found = metadata.version("peft")
    except metadata.PackageNotFoundError:
        raise PackageError(
            f"svfit_diffusion.peft needs PEFT {oldest} or newer, which is missing: pip install "
            f"'svfit-diffusion[peft]'"
        ) from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        raise PackageError(
            f"svfit_diffusion.peft needs PEFT {oldest} or newer, found {found}: pip install "
            f"'peft>={oldest}'"
        )
