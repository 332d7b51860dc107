"""How many threads to compute on, beside whatever else a machine does."""

from __future__ import annotations

import logging
import os

import psutil
import torch

logger = logging.getLogger(__name__)

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_MOST = torch.get_num_threads()


def leave_busy_cores(look: float = 0.3) -> int:
    """Let torch compute on the cores that other programs leave, and return how many threads.

    A step waits for all threads, and waits by spinning: beside one other program on two cores it
    takes three times as long on two threads as on one (`python -m benchmarks.busy_machine`). On an
    idle machine all cores are used, again if others have ended. Nothing is changed where a variable
    for OpenMP is set, as the user or a launcher of several processes does.

    It holds for the thread that calls, and for those that begin to compute after it.

    Args:
        look: how long to look at what others do, in seconds; a tenth tells whole cores.
    """
    before = torch.get_num_threads()
    if _MOST == 1 or any(name in os.environ for name in _CHOSEN):
        return before
    cores = os.cpu_count() or 1
    busy = round(_cores_of_others(look))
    threads = max(1, min(_MOST, cores - busy))
    if threads != before:
        torch.set_num_threads(threads)
        logger.warning(
            "other programs use %d of %d cores, so torch computes on %d of its own from now on; "
            "set OMP_NUM_THREADS to choose",
            busy,
            cores,
            threads,
        )
    return threads


def _cores_of_others(seconds: float) -> float:
    """How many cores are busy with anything but this process, in the seconds to come."""
    own = psutil.Process()
    own.cpu_percent()  # from here on
    everyone = psutil.cpu_percent(seconds) * (os.cpu_count() or 1)
    return (everyone - own.cpu_percent()) / 100
