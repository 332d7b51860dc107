"""Whether another thread is drawing with a model.

Adapters that are set are weights, which a picture reads over and over while it is drawn: a change
in the midst of it would give a picture of neither. Nothing of ours runs in a forward pass, so it is
the pipelines' calls that count.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from svfit_diffusion.calls import asked_first, no_call_begins
from svfit_diffusion.errors import StateError

GIVEN_ELSEWHERE = (
    "another thread has given adapters per prompt to this pipeline: wait until it has left "
    "svfit_adapters_per_prompt(), or give each thread a pipeline of its own"
)


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


@contextmanager
def only_this_thread_draws(models: Collection[nn.Module]) -> Iterator[None]:
    """No other thread begins to call a pipeline with these models; it gets `StateError`."""
    own = threading.get_ident()

    def check(pipe: Any) -> None:
        if threading.get_ident() != own and _has(pipe, models):
            raise StateError(GIVEN_ELSEWHERE)

    with asked_first(check):
        yield


def _has(pipe: Any, models: Collection[nn.Module]) -> bool:
    """Whether a pipeline draws with one of these, compiled or wrapped as it may be there."""
    components = [c for c in pipe.components.values() if isinstance(c, nn.Module)]
    used = {id(module) for component in components for module in component.modules()}
    return any(id(model) in used for model in models)
