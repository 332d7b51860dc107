"""How many singular values to train."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.spectrum.rank import parse_rank, select_rank


@pytest.mark.parametrize("fraction", [1e-9, 0.25, 0.5, 0.9, 0.99, 0.999999, 1.0])
def test_energy_rank_is_the_smallest_that_reaches_the_fraction(fraction: float) -> None:
    sigma = torch.rand(40, generator=torch.Generator().manual_seed(1)).sort(descending=True).values
    squares = [float(value) ** 2 for value in sigma]
    smallest = next(
        r
        for r in range(1, len(squares) + 1)
        if math.fsum(squares[:r]) >= fraction * math.fsum(squares) or r == len(squares)
    )
    assert select_rank(sigma, fraction) == smallest


@pytest.mark.parametrize(
    ("sigma", "rank", "expected"),
    [
        ([3.0, 2.0, 1.0], 1, 1),
        ([3.0, 2.0, 1.0], 3, 3),
        # 9/14 = 0.643: reached at once, and not a hair above.
        ([3.0, 2.0, 1.0], 0.64, 1),
        ([3.0, 2.0, 1.0], 0.65, 2),
        # 1.0 means all, even those that carry nothing.
        ([3.0, 0.0, 0.0], 1.0, 3),
        ([3.0, 0.0, 0.0], 0.999, 1),
        ([0.0, 0.0], 0.5, 1),
        # Exactly reached: half of the energy of two equal values.
        ([1.0, 1.0], 0.5, 1),
        # Beyond what float32 sums resolve: 1e8 + 1 - 1e8.
        ([1e4, 1.0, 1.0], 1.0 - 1.5e-8, 2),
    ],
)
def test_select_rank_at_the_edges(sigma: list[float], rank: float, expected: int) -> None:
    assert select_rank(torch.tensor(sigma), rank) == expected


BAD_RANKS = [0, -1, 0.0, -0.5, 1.0001, 16.0, math.nan, math.inf, True, False, None, "16"]


@pytest.mark.parametrize("rank", [*BAD_RANKS, 4], ids=repr)
def test_select_rank_refuses(rank: Any) -> None:
    with pytest.raises(ConfigError, match="rank"):
        select_rank(torch.tensor([3.0, 2.0, 1.0]), rank)


@pytest.mark.parametrize(
    ("text", "rank"), [("16", 16), ("1", 1), ("1.0", 1.0), ("0.99", 0.99), ("1e-2", 0.01)]
)
def test_parse_rank_tells_counts_from_fractions(text: str, rank: float) -> None:
    parsed = parse_rank(text)
    assert parsed == rank
    assert type(parsed) is type(rank)


@pytest.mark.parametrize("text", ["", "full", "0", "-3", "0.0", "1.5", "16.0", "nan", "inf", "8,8"])
def test_parse_rank_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="rank"):
        parse_rank(text)
