"""Fronts: interpolation, what is compared where, and the rates that follow."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.cells import Cell, CellStore, Setup
from benchmarks.finetune import Recipe
from benchmarks.fronts import STRENGTHS, Front
from benchmarks.methods import METHODS, find_method
from benchmarks.quality_rows import BASE, DRIFTS, REFERENCE, Runs, choose_rates, summary_row

FRONT = Front((0.0, 0.1, 0.3, 0.2, 0.4), (0.2, 0.3, 0.5, 0.4, 0.6), (0.9, 0.8, 0.7, 0.6, 0.5))


@pytest.mark.parametrize(
    ("drift", "subject", "prompt"),
    [
        (0.0, 0.2, 0.9),
        (0.05, 0.25, 0.85),
        (0.1, 0.3, 0.8),
        (0.2, 0.4, 0.75),  # where it is reached first, not where it falls back to it
        (0.35, 0.55, 0.525),
        (0.4, 0.6, 0.5),
        (0.9, 0.6, 0.5),  # never: the end
    ],
)
def test_figures_at_a_drift(drift: float, subject: float, prompt: float) -> None:
    assert FRONT.at_drift(drift) == (pytest.approx(subject), pytest.approx(prompt))
    assert FRONT.reaches_drift(drift) == (drift <= 0.4)


def test_drift_at_a_fidelity() -> None:
    assert FRONT.drift_at(0.1) == 0
    assert FRONT.drift_at(0.45) == pytest.approx(0.25)
    assert FRONT.drift_at(0.7) == pytest.approx(0.4)
    assert FRONT.reaches_fidelity(0.6)
    assert not FRONT.reaches_fidelity(0.61)


def test_a_front_that_goes_nowhere_is_the_base() -> None:
    flat = Front((0.0,) * 5, (0.3,) * 5, (0.8,) * 5)
    assert flat.at_drift(0.2) == (0.3, 0.8)
    assert flat.drift_at(0.5) == 0


def figures(drift: float, subject: float) -> dict[str, Any]:
    return {
        "drift": drift,
        "subject_fidelity": subject,
        "prompt_fidelity": 1 - drift,
        "diversity": 0.1,
        "photo_similarity": subject,
        "scene_accuracy": None,
        "class_accuracy": None,
    }


def write(store: CellStore, cell: Cell, slope: float, drift: float) -> None:
    """A cell whose drift and gain rise evenly, from a base that differs by subject and seed."""
    start = 0.2 + 0.1 * random.Random(f"{cell.subject}{cell.seed}").random()
    at = {s: figures(drift * s, start + slope * drift * s) for s in (0.0, *STRENGTHS)}
    rows = {str(s): at[s] for s in STRENGTHS}
    bare = at[0.0] if cell.method == BASE else at[1.0]
    row = {**bare, "strengths": rows, "parameters": 10, "adapter_bytes": 100, "train_seconds": 1.0}
    store.write_with_images(cell, row, [Image.new("RGB", (4, 4))])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellStore:
    monkeypatch.setattr("benchmarks.cells.CACHE", tmp_path / "cache")
    setup = Setup("no/such-base", tmp_path, "toybox", "cpu", Recipe(steps=3), tmp_path / "runs")
    return CellStore(setup)


SUBJECTS, SEEDS = ("a", "b", "c"), (0, 1)


def fill(store: CellStore, method: str, rate: float, slope: float, drift: float) -> None:
    for subject in SUBJECTS:
        for seed in SEEDS:
            write(store, Cell(method, rate, subject, seed), slope, drift)


def test_rates_are_chosen_at_the_references_drift(store: CellStore) -> None:
    """A rate that is more faithful at full strength, for more drift, does not win by that."""
    methods = [find_method(name) for name in (BASE, "SVFit", REFERENCE)]
    lora, svfit = methods[2].learning_rates, methods[1].learning_rates
    fill(store, BASE, 0.0, 0.0, 0.0)
    for rate, drift in zip(lora, (0.1, 0.3, 0.2, 0.05), strict=True):
        fill(store, REFERENCE, rate, 0.5, drift)
    for rate, slope, drift in zip(svfit, (0.7, 0.6, 0.5, 0.4), (0.1, 0.3, 0.6, 0.9), strict=True):
        fill(store, "SVFit", rate, slope, drift)
    rates = choose_rates(Runs(store, SUBJECTS, SEEDS), methods)
    assert rates == {BASE: 0.0, REFERENCE: lora[1], "SVFit": svfit[1]}


def test_differences_are_of_pairs(store: CellStore) -> None:
    """Bases differ by subject and seed; the differences do not, so they have no error."""
    fill(store, BASE, 0.0, 0.0, 0.0)
    fill(store, REFERENCE, 1e-3, 0.5, 0.2)
    fill(store, "SVFit", 0.1, 0.6, 0.4)
    runs, rates = Runs(store, SUBJECTS, SEEDS), {BASE: 0.0, REFERENCE: 1e-3, "SVFit": 0.1}
    row = summary_row(runs, find_method("SVFit"), rates)
    assert row["subject_difference"]["mean"] == pytest.approx(0.02)
    assert row["subject_difference"]["stderr"] == pytest.approx(0, abs=1e-9)
    assert row["subject_fidelity"]["stderr"] > 0.001
    assert row["prompt_difference"]["mean"] == pytest.approx(0, abs=1e-9)
    assert row["drift_ratio"]["mean"] == pytest.approx(0.5 / 0.6)
    assert row["share_of_gain"] == pytest.approx(1.2)
    found = [row["at_drift"][str(drift)] for drift in DRIFTS]
    # The reference ends at 0.2.
    assert [d["subject_difference"]["mean"] for d in found] == pytest.approx([0.01, 0.02, 0.08])
    assert [d["share_that_reaches"] for d in found] == [1, 1, 0]
    assert row["reaches_reference_drift"]["mean"] == 1
    assert [point["mean"] for point in row["front"]["drift"]] == pytest.approx(
        [0.4 * strength for strength in (0, *STRENGTHS)]
    )
    same = summary_row(runs, find_method(REFERENCE), rates)
    assert same["subject_difference"]["mean"] == pytest.approx(0)
    assert same["drift_ratio"]["mean"] == pytest.approx(1)
    assert "front" not in summary_row(runs, find_method(BASE), rates)
    # The other way round.
    turned = summary_row(runs, find_method(REFERENCE), rates, compared_with="SVFit")["at_drift"]
    found = [turned[str(drift)]["subject_difference"]["mean"] for drift in DRIFTS]
    assert found == pytest.approx([-0.01, -0.02, -0.08])


def test_the_base_and_the_reference_are_methods() -> None:
    assert {BASE, REFERENCE} <= {method.name for method in METHODS}
