"""The model of a fleet, where its answers are known."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet_model import (
    ONE_ADAPTER,
    ONE_REQUEST,
    ROWS,
    Cache,
    Fleet,
    Service,
    simulate,
    zipf_subjects,
)

SERVICE = Service(per_batch=1.0, per_row=1.0, switch=0.5, load=0.25, fetch=0.125)


def latencies(policy: str, subjects: list[int], cached: int = 10, **changed: Any) -> list[float]:
    """Of requests that come at 0, 0.1, 0.2 … to one replica, in order of their answers."""
    arrivals = np.arange(len(subjects)) / 10
    fleet = Fleet(1, policy, SERVICE, cached, near=False)
    return simulate(fleet, arrivals, np.array(subjects), **changed).latencies.tolist()


def test_rows_take_all_who_wait() -> None:
    assert latencies(ROWS, [1, 2, 3]) == pytest.approx([2, 4.9, 4.8])


def test_one_request_at_a_time_takes_the_first() -> None:
    assert latencies(ONE_REQUEST, [1, 2]) == pytest.approx([2.5, 4.9])


def test_one_adapter_takes_those_alike() -> None:
    # 1 at 0 until 2.5; both 2 until 6; 3 until 8.5
    found = latencies(ONE_ADAPTER, [1, 2, 3, 2])
    assert found == pytest.approx([2.5, 5.9, 5.7, 8.3])


def test_what_is_not_in_memory_takes_longer() -> None:
    found = latencies(ROWS, [0, 7, 7], cached=1)
    assert found == pytest.approx([2, 2 + 3.375 - 0.1, 2 + 3.375 - 0.2])


def test_requests_before_the_warm_up_do_not_count() -> None:
    assert latencies(ROWS, [1, 2, 3], warm_up=0.15) == pytest.approx([4.8])


def test_a_fleet_that_is_too_small_never_answers() -> None:
    found = latencies(ONE_REQUEST, [1] * 1000)
    assert found == [float("inf")]


def test_the_cache_is_one_that_was_filled_by_popularity() -> None:
    for capacity in (1, 3, 8):
        cache = Cache(capacity)
        reference = OrderedDict.fromkeys(reversed(range(capacity)))
        for subject in random.Random(capacity).choices(range(12), k=300):
            assert cache.has(subject) == (subject in reference)
            reference[subject] = None
            reference.move_to_end(subject)
            while len(reference) > capacity:
                reference.popitem(last=False)


def test_subjects_follow_zipfs_law() -> None:
    found = np.bincount(zipf_subjects(100_000, 1000, 1.0, seed=0), minlength=1000)
    # The k-th has a k-th of the first's share, but for the chance of 13,000 draws.
    assert found[0] / found[9] == pytest.approx(10, rel=0.1)
    assert found.sum() == 100_000
