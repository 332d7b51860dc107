"""Which threads are in a call of which pipelines, and a moment in which none begins.

It knows pipelines as objects only, so that it can be at hand before diffusers is.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()
_running: list[tuple[int, Any]] = []
"""Thread and pipeline of every call that has begun and not ended."""
_checks: list[Callable[[Any], None]] = []


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


@contextmanager
def asked_first(check: Callable[[Any], None]) -> Iterator[None]:
    """Call `check` in each thread with the pipeline of every call that would begin meanwhile.

    What it raises keeps the call from beginning.
    """
    with _lock:
        _checks.append(check)
    try:
        yield
    finally:
        with _lock:
            _checks.remove(check)


def ask_always(check: Callable[[Any], None]) -> None:
    """Call `check` with the pipeline of every call that would begin; what it raises keeps it."""
    with _lock:
        _checks.append(check)


def _watch(cls: type) -> None:
    """Note calls of a class's instances; the call may be a mixin's."""
    for owner in cls.__mro__:
        call: Callable[..., Any] | None = vars(owner).get("__call__")
        if call is not None:
            if not hasattr(call, "__svfit_watched__"):
                setattr(cls, "__call__", _noted(call))  # noqa: B010 (mypy refuses to assign one)
            return


def _noted(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        entry = (threading.get_ident(), self)
        with _lock:
            for check in _checks:
                check(self)
            _running.append(entry)
        try:
            return call(self, *args, **kwargs)
        finally:
            with _lock:
                # The thread's last: a pipeline's call may call its parent's or another pipeline.
                places = [i for i, (t, p) in enumerate(_running) if t == entry[0] and p is self]
                del _running[places[-1]]

    noted.__svfit_watched__ = True  # type: ignore[attr-defined]
    return noted


def _forget_others() -> None:
    """In a process that was just forked only the thread that did so goes on."""
    global _lock
    _lock = threading.RLock()
    _running[:] = [entry for entry in _running if entry[0] == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_others)
