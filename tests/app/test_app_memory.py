"""Memory that is free goes back to the system, wherever it lies between what is in use."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator

import psutil
import pytest

from app import memory

BLOCK = 64 * 2**10  # too small for glibc to ask the system for it alone
COUNT = 1600  # 100 MB


class Cycle:
    """Used by itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def unsettled() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_uses_nobody_but_itself_goes_once_a_base_model_is_replaced(unsettled: None) -> None:
    stays = Cycle()
    seen = weakref.ref(stays)
    memory.settle()
    came = weakref.ref(Cycle())
    memory.give_back()
    assert came() is None
    del stays
    memory.give_back()
    assert seen() is not None, "what was there is not looked through each time"
    memory.settle()
    assert seen() is None


@pytest.mark.skipif(memory._trim is None, reason="another C library keeps memory in other ways")
def test_what_is_free_between_what_is_in_use_goes_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def megabytes() -> float:
        return float(psutil.Process().memory_info().rss) / 2**20

    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    in_use = libc.malloc(BLOCK)  # at the end of the heap, which keeps what is below it
    for block in blocks:
        libc.free(block)
    before = megabytes()
    memory.give_back()
    freed = before - megabytes()
    libc.free(in_use)
    assert freed > 80


def test_another_c_library_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AttributeError, OSError, TypeError):

        def no_library(name: str | None, error: type[Exception] = error) -> None:
            raise error

        monkeypatch.setattr(ctypes, "CDLL", no_library)
        assert memory._trimming() is None
    monkeypatch.setattr(memory, "_trim", None)
    memory.give_back()
