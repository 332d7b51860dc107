"""Threads for work that gains more from being many than from torch's own threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers(count: int, threads_each: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Workers that compute with so many of torch's threads each."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads_each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # The setting is the worker's own, but threads started later would take it over.
        torch.set_num_threads(threads)
