"""Whether another thread is drawing with a model.

Adapters that are set are weights, which a picture reads over and over while it is drawn: a change
in the midst of it would give a picture of neither. Nothing of ours runs in a forward pass, so the
one who changes looks what the other threads are at.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from svfit_diffusion.errors import StateError


def refuse_while_drawing(models: Collection[nn.Module]) -> None:
    """Raise `StateError` if another thread is in a call of one of the models or its pipeline."""
    own = threading.get_ident()
    for thread, frame in sys._current_frames().items():
        if thread != own and any(_uses(owner, models) for owner in _callers(frame)):
            raise StateError(
                "another thread is drawing with this pipeline: change adapters before or after, or "
                "give each thread a pipeline of its own"
            )


def _callers(frame: FrameType | None) -> Iterator[Any]:
    """The objects whose `forward` or `__call__` a thread is in."""
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("forward", "__call__") and code.co_varnames[:1] == ("self",):
            yield frame.f_locals.get("self")
        frame = frame.f_back


def _uses(owner: Any, models: Collection[nn.Module]) -> bool:
    if isinstance(owner, DiffusionPipeline):
        used = [getattr(c, "_orig_mod", c) for c in owner.components.values()]
        return any(c is model for c in used for model in models)
    return any(owner is model for model in models)
