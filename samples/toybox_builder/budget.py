"""Training by the clock: progress, learning rate and checkpoints of a time-limited run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch


class TimeBudget:
    """Counts training time against a budget, across interruptions."""

    def __init__(self, minutes: float, spent_seconds: float = 0.0) -> None:
        self._budget = minutes * 60
        self._before = spent_seconds
        self._start = time.monotonic()

    @property
    def spent_seconds(self) -> float:
        """Training time so far, earlier runs included."""
        return self._before + time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Share of the budget that is used up; over 1 when the time is over."""
        return self.spent_seconds / self._budget


def learning_rate_factor(progress: float, warmup: float = 0.02, decay_start: float = 0.4) -> float:
    """Linear warm-up, a flat stretch, then a linear fall to zero at the end of the budget."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, min(1.0, (1 - progress) / (1 - decay_start)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's own peak rate by a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or None where there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
