"""Which threads are in a call of which pipelines, and a moment in which none begins.

It knows pipelines as objects only, so that it can be at hand before diffusers is.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()
_running: list[tuple[int, Any]] = []
"""Thread and pipeline of every call that has begun and not ended."""


def watch_calls(pipeline: type) -> None:
    """Note every call of a class and of its subclasses, those still to be defined included.

    Args:
        pipeline: the class; it has no `__init_subclass__` of its own.
    """

    def begin(cls: type, /, **kwargs: Any) -> None:
        super(pipeline, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]
        _watch(cls)

    pipeline.__init_subclass__ = classmethod(begin)  # type: ignore[assignment]
    classes = [pipeline]
    while classes:
        cls = classes.pop()
        _watch(cls)
        classes += cls.__subclasses__()


@contextmanager
def no_call_begins() -> Iterator[list[Any]]:
    """The pipelines that other threads are calling; calls that would begin meanwhile wait."""
    own = threading.get_ident()
    with _lock:
        yield [pipe for thread, pipe in _running if thread != own]


def _watch(cls: type) -> None:
    call: Callable[..., Any] | None = vars(cls).get("__call__")
    if call is not None and not hasattr(call, "__svfit_watched__"):
        setattr(cls, "__call__", _noted(call))  # noqa: B010 (mypy refuses to assign a method)


def _noted(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        entry = (threading.get_ident(), self)
        with _lock:
            _running.append(entry)
        try:
            return call(self, *args, **kwargs)
        finally:
            with _lock:
                # The thread's last: a pipeline's call may call its parent's or another pipeline.
                last = max(i for i, (t, p) in enumerate(_running) if t == entry[0] and p is self)
                del _running[last]

    noted.__svfit_watched__ = True  # type: ignore[attr-defined]
    return noted
