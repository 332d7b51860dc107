"""How many threads a training computes on, beside whatever else a machine does."""

from __future__ import annotations

import logging
import os

import psutil
import torch

logger = logging.getLogger(__name__)

_CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_LOOK = 0.3  # seconds


def leave_busy_cores() -> int:
    """Let torch compute on the cores that other programs leave, and return how many threads.

    A step waits for all threads, and waits by spinning: beside one other program on two cores it
    takes three times as long on two threads as on one (`python -m benchmarks.busy_machine`). On an
    idle machine all cores are used. Nothing is changed where a variable for OpenMP is set, as the
    user or a launcher of several processes does.
    """
    threads = torch.get_num_threads()
    if threads > 1 and not any(name in os.environ for name in _CHOSEN):
        cores = os.cpu_count() or 1
        busy = round(psutil.cpu_percent(_LOOK) / 100 * cores)
        if busy:
            threads = max(1, min(threads, cores - busy))
            torch.set_num_threads(threads)
            logger.warning(
                "other programs use %d of %d cores, so training computes on %d of its own; set "
                "OMP_NUM_THREADS to choose",
                busy,
                cores,
                threads,
            )
    return threads
