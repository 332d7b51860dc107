"""Training leaves cores to whoever uses them."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import torch

from svfit_diffusion.training import threads


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for name in threads._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0.0, 4), (6.0, 4), (25.0, 3), (60.0, 2), (100.0, 1)]
)
def test_as_many_as_others_leave(
    percent: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)
    assert threads.leave_busy_cores() == expected
    assert torch.get_num_threads() == expected


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert threads.leave_busy_cores() == torch.get_num_threads() == 4


def test_fewer_threads_than_are_free_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 30.0)
    assert threads.leave_busy_cores() == 2
