"""The comparison of plans with measured steps: its arithmetic, and that both train the same."""

from __future__ import annotations

import pytest

from benchmarks import plan_accuracy
from benchmarks.plan_accuracy import METHODS, Measured, make_row
from benchmarks.plan_cases import CASES
from svfit_diffusion.planning import StepMemory
from svfit_diffusion.planning import plan as plan_module
from svfit_diffusion.planning.methods import svfit


def test_ratios_are_of_all_bytes_and_of_those_beyond_the_weights() -> None:
    planned = StepMemory(weights=1000, basis=50, state=10, saved=100, working=40)
    row = make_row(planned, 1200, Measured(values=7, weights=1000, beyond=250, kept=30))
    assert row["ratio"] == pytest.approx(1200 / 1250)
    assert row["ratio_beyond_weights"] == pytest.approx(200 / 250)
    assert row["planned"]["total"] == 1200
    assert row["holds"]


@pytest.mark.parametrize(("beyond", "holds"), [(0, False), (100, True), (333, True), (400, False)])
def test_a_tenth_either_way_is_the_most(beyond: int, holds: bool) -> None:
    planned = StepMemory(weights=1000, basis=0, state=0, saved=100, working=100)
    assert make_row(planned, 1200, Measured(0, 1000, beyond or 50, 0))["holds"] is holds


def test_a_run_trains_what_its_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_accuracy, "BATCH_SIZES", (1,))
    monkeypatch.setattr(plan_module, "_methods", lambda _: {"SVFit": svfit})
    case = CASES["Toybox"]
    name = "SVFit, rank 64"
    plan = plan_accuracy._plan(case, METHODS[name].rank, "cpu")
    measured = plan_accuracy.measure("Toybox", name, 1, "cpu")
    planned = plan.steps[0].memory[METHODS[name].planned_as]
    assert measured.values == plan_accuracy._values(plan, METHODS[name]) > 0
    assert measured.weights == planned.weights
    # What steps keep is real. Other tests' memory is in this process too, so no more is said.
    assert measured.beyond > 0
