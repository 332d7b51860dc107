"""Means with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A mean and its standard error."""

    mean: float
    stderr: float


def summarise(values: Sequence[float]) -> Figure:
    """Mean and standard error of independent values; the error of a single one is 0."""
    if len(values) < 2:
        return Figure(values[0], 0.0)
    return Figure(statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)))


def paired(values: Sequence[float], others: Sequence[float]) -> Figure:
    """Mean and standard error of the differences of pairs."""
    return summarise([value - other for value, other in zip(values, others, strict=True)])
