"""Processes that die in the middle of writing files."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from svfit_diffusion.files import atomic

_KILLED = 77
_CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
_HALF_WRITTEN, _SYNC = "crash.half_written", "crash.fsync"


def moments(work: Callable[[], object]) -> Iterator[int]:
    """Do `work` again and again, in a process that dies before its first change of a file, its
    second and so on, until it comes to its end; after each death the change that was not made.
    """
    for number in itertools.count(1):
        if _dies(number, work):
            yield number
        else:
            return


def _dies(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that dies before its change of that number, if it makes so many."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of others are not here
            _die_before(number)
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED), "the work failed by itself"
    return code == _KILLED


def _die_before(number: int) -> None:
    changes = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_change(event, arguments) and next(changes) == number:
            if event == _HALF_WRITTEN:
                os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
            os._exit(_KILLED)

    save, sync = atomic.save_file, os.fsync

    def save_file(tensors: Any, path: Any, metadata: Any) -> None:
        save(tensors, path, metadata)
        sys.audit(_HALF_WRITTEN, path)

    def fsync(file: Any) -> None:
        sys.audit(_SYNC, file)
        sync(file)

    atomic.save_file, os.fsync = save_file, fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":  # (path, mode, flags)
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in (*_CHANGES, _HALF_WRITTEN, _SYNC)
