"""Memory that nobody uses any more, given back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

from anyio import to_thread

_SECONDS = 20


def _trimming() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc; None where there is another C library."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


_trim = _trimming()


def settle() -> None:
    """Take what is there now for what stays, until it is called again.

    Python looks for cycles that nobody uses once there is a quarter more than it has seen before.
    Seven hundred thousand objects of libraries are seen here, so what trainings leave, of few and
    large objects, would wait for many more trainings. What stays is not looked through again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Look for what nobody uses, and give it back with all that is free.

    glibc keeps what is free in between, for each thread that has computed, and trainings are
    threads of their own: after twenty small ones, 100 MB.
    """
    gc.collect()
    if _trim is not None:
        _trim(0)


async def keep_giving_back() -> None:
    """Do so again and again."""
    while True:
        await asyncio.sleep(_SECONDS)
        await to_thread.run_sync(give_back)
