"""Strengths are whatever `float()` takes, and finite; anything else is refused by its value."""

from __future__ import annotations

import decimal
import fractions
from typing import Any

import numpy as np
import pytest
import torch
from merged import load
from tiny import make_tiny_pipeline, run_pipeline

from svfit_diffusion import ConfigError
from svfit_diffusion.adapters.strengths import mixes, strengths

HALVES: list[Any] = [
    0.5,
    np.float32(0.5),
    np.float16(0.5),
    np.array(0.5),
    np.array([0.5])[0],
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16),
    fractions.Fraction(1, 2),
    decimal.Decimal("0.5"),
]


@pytest.mark.parametrize("half", HALVES, ids=lambda half: type(half).__name__)
def test_a_number_of_any_kind(half: Any) -> None:
    assert strengths(["a"], half) == [0.5]
    assert strengths(["a", "b"], half) == [0.5, 0.5]
    assert strengths(["a", "b"], [half, 2]) == [0.5, 2.0]
    assert strengths(["a"], {"unet": half}) == [{"unet": 0.5}]
    assert mixes([{"a": half}], None) == [{"a": (0.5, 1.0)}]
    assert all(type(strength) is float for strength in strengths(["a"], half))


@pytest.mark.parametrize("one", [1, True, np.int64(1), np.bool_(True), torch.tensor(1)])
def test_whole_numbers(one: Any) -> None:
    assert strengths(["a"], one) == [1.0]


@pytest.mark.parametrize(
    "several",
    [[0.25, -3.0], (0.25, -3.0), np.array([0.25, -3.0]), torch.tensor([0.25, -3.0])],
    ids=lambda several: type(several).__name__,
)
def test_lists_of_any_kind(several: Any) -> None:
    assert strengths(["a", "b"], several) == [0.25, -3.0]
    assert mixes(["a", None], several) == [{"a": (0.25,)}, {}]


BAD: list[Any] = [
    "0.5",
    "strong",
    b"1",
    float("nan"),
    float("inf"),
    -np.inf,
    np.float64("nan"),
    torch.tensor(float("nan")),
    1j,
    torch.tensor(1j),
    None,
    [0.5],
    np.array([0.5, 0.5]),
    torch.ones(2),
    10**400,
    object(),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: str(bad)[:16])
def test_what_is_no_finite_number_is_refused(bad: Any) -> None:
    if bad is not None and not isinstance(bad, list | np.ndarray | torch.Tensor):
        with pytest.raises(ConfigError, match="finite number, got"):
            strengths(["a"], bad)
    with pytest.raises(ConfigError, match="finite number, got"):
        strengths(["a", "b"], [1.0, bad])
    with pytest.raises(ConfigError, match="finite number, got"):
        strengths(["a"], {"unet": bad})
    with pytest.raises(ConfigError, match="finite number, got"):
        mixes([{"a": bad}], None)


@pytest.mark.parametrize(
    "count", [[], [1.0], [1.0, 1.0, 1.0], np.ones(3), torch.ones(1)], ids=lambda c: str(len(c))
)
def test_lists_of_another_length_are_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match=rf"2 adapters and {len(count)} weights"):
        strengths(["a", "b"], count)


def test_a_component_that_pipelines_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'u_net'; components: unet, "):
        strengths(["a"], {"u_net": 1.0})


def test_a_refused_strength_changes_nothing() -> None:
    pipe = load(make_tiny_pipeline())
    pipe.set_svfit_adapters("a", np.float32(0.5))
    before = run_pipeline(pipe)
    pipe.set_svfit_adapters("a", fractions.Fraction(1, 2))
    assert torch.equal(run_pipeline(pipe), before)
    for bad in ("0.5", float("nan"), [0.5, 0.5]):
        with pytest.raises(ConfigError):
            pipe.set_svfit_adapters("a", bad)
        assert torch.equal(run_pipeline(pipe), before)
    pipe.fuse_svfit(torch.tensor(2.0))
    pipe.unfuse_svfit()
    assert torch.equal(run_pipeline(pipe), before)
