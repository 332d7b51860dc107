"""Seconds, bytes and processes: how benchmarks measure."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Environment in which glibc gives freed memory back, so that resident memory is memory in use."""

_STATUS = Path("/proc/self/status")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def isolated(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What a function returns in a fresh process; its memory is gone afterwards.

    Raises:
        BrokenProcessPool: the process was killed, as it is where memory runs out.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, until the device is done with what it was given."""
    _wait_for(device)
    began = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - began


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one call of each to warm up.

    A round makes every call once, so that a slow spell of the machine falls on all of them; each
    round starts with another call, so that none always follows the same one.
    """
    names = list(calls)
    for name in names:
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(calls[name], device))
    return seconds


def memory_status() -> dict[str, int]:
    """Bytes of this process as Linux counts them: `VmRSS`, `VmHWM`, `RssAnon`, `RssFile`."""
    fields = (line.split() for line in _STATUS.read_text().splitlines())
    return {
        field[0].rstrip(":"): 1024 * int(field[1])
        for field in fields
        if field[-1] == "kB" and field[0].startswith(("Vm", "Rss"))
    }


def peak_bytes_of(call: Callable[[], Any], device: str) -> int:
    """Most memory in use during a call, all that the process or the GPU held before included."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    trim_memory()
    # Resets VmHWM: what building and decomposing needed before does not count.
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return memory_status()["VmHWM"]


def trim_memory() -> None:
    """Give freed memory back to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bytes_in_use(device: str) -> int:
    """Bytes held on the GPU, or by this process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    trim_memory()
    return memory_status()["VmRSS"]
