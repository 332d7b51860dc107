"""Training leaves cores to whoever uses them."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
import torch

from svfit_diffusion.training import threads

pytestmark = pytest.mark.usefixtures("four_cores")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the machine be so busy: per cent of all cores, and what of it is ours, of one."""

    def set_to(everyone: float, own: float = 0.0) -> None:
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: everyone)
        monkeypatch.setattr(psutil.Process, "cpu_percent", lambda process: own)

    return set_to


@pytest.mark.parametrize(
    ("percent", "expected"), [(0.0, 4), (6.0, 4), (25.0, 3), (60.0, 2), (100.0, 1)]
)
def test_as_many_as_others_leave(percent: float, expected: int, load: Callable[..., None]) -> None:
    load(percent)
    assert threads.leave_busy_cores() == expected
    assert torch.get_num_threads() == expected


def test_what_this_process_computes_itself_is_no_others(load: Callable[..., None]) -> None:
    load(75.0, own=200.0)  # three cores, two of which are ours
    assert threads.leave_busy_cores() == 3


def test_all_again_once_others_have_ended(load: Callable[..., None]) -> None:
    load(100.0)
    assert threads.leave_busy_cores() == 1
    load(0.0)
    assert threads.leave_busy_cores() == torch.get_num_threads() == 4


def test_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, load: Callable[..., None]
) -> None:
    load(100.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert threads.leave_busy_cores() == torch.get_num_threads() == 4


def test_fewer_threads_than_are_free_stay(
    monkeypatch: pytest.MonkeyPatch, load: Callable[..., None]
) -> None:
    monkeypatch.setattr(threads, "_MOST", 2)
    load(30.0)
    assert threads.leave_busy_cores() == 2
