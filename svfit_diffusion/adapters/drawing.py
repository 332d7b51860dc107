"""Whether another thread is drawing with a model.

Adapters that are set are weights, which a picture reads over and over while it is drawn: a change
in the midst of it would give a picture of neither. Nothing of ours runs in a forward pass, so it is
the pipelines' calls that count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from svfit_diffusion.calls import no_call_begins
from svfit_diffusion.errors import StateError


@contextmanager
def nobody_draws(models: Collection[nn.Module]) -> Iterator[None]:
    """For a change of models: no other thread calls a pipeline with them, or begins to.

    Raises:
        StateError: another thread is in such a call.
    """
    with no_call_begins() as pipes:
        if any(_has(pipe, models) for pipe in pipes):
            raise StateError(
                "another thread is drawing with this pipeline: change adapters before or after, or "
                "give each thread a pipeline of its own"
            )
        yield


def _has(pipe: Any, models: Collection[nn.Module]) -> bool:
    """Whether a pipeline draws with one of these, compiled or wrapped as it may be there."""
    components = [c for c in pipe.components.values() if isinstance(c, nn.Module)]
    used = {id(module) for component in components for module in component.modules()}
    return any(id(model) in used for model in models)
