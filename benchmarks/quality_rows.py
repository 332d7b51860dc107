"""What the quality benchmark says of its cells: rates, rows of the table, differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean, median
from typing import Any

from benchmarks.cells import Cell, CellStore
from benchmarks.fronts import STRENGTHS, Front
from benchmarks.methods import Method
from benchmarks.report import Row
from benchmarks.statistics import Figure, summarise

BASE, REFERENCE = "none", "LoRA, r=8"
DRIFTS = (0.1, 0.2, 0.3)
"""At which all fronts are compared too: the reference's own drift is what its rate makes of it."""
_FIGURES = (
    "subject_fidelity",
    "prompt_fidelity",
    "drift",
    "diversity",
    "photo_similarity",
    "scene_accuracy",
    "class_accuracy",
)


@dataclass(frozen=True)
class Runs:
    """The finished cells of some subjects and seeds.

    Attributes:
        store: where they are.
        subjects: names.
        seeds: of each.
    """

    store: CellStore
    subjects: Sequence[str]
    seeds: Sequence[int]

    def rows(self, method: str, rate: float) -> list[list[Row]]:
        """The cells' figures, by subject and by seed."""
        return [
            [self.store.read(Cell(method, rate, subject, seed)) for seed in self.seeds]
            for subject in self.subjects
        ]

    def fronts(self, method: str, rate: float) -> list[list[Front]]:
        """What each cell gives at rising strengths, by subject and by seed."""
        pairs = zip(self.rows(BASE, 0.0), self.rows(method, rate), strict=True)
        return [[front_of(*pair) for pair in zip(*rows, strict=True)] for rows in pairs]


def front_of(base: Row, trained: Row) -> Front:
    """The front of a cell, from the base's at the same noise."""
    rows = [base, *(trained["strengths"][str(strength)] for strength in STRENGTHS)]
    return Front(
        tuple(row["drift"] for row in rows),
        tuple(row["subject_fidelity"] for row in rows),
        tuple(row["prompt_fidelity"] for row in rows),
    )


def choose_rates(runs: Runs, methods: Sequence[Method]) -> dict[str, float]:
    """Each method's learning rate, by the tuning subjects.

    The reference's is the one with the highest subject fidelity, the others' those with the highest
    at the drift that this has.
    """
    reference = next(method for method in methods if method.name == REFERENCE)
    of_reference = {rate: runs.fronts(REFERENCE, rate) for rate in reference.learning_rates}

    def full_fidelity(rate: float) -> float:
        fronts = of_reference[rate]
        return _over(fronts, fronts, lambda front, _: front.subject_fidelity[-1])

    best = max(of_reference, key=full_fidelity)
    rates = {BASE: 0.0, REFERENCE: best}
    for method in methods:
        if method.name not in rates:
            fidelity = {
                rate: _over(
                    runs.fronts(method.name, rate),
                    of_reference[best],
                    lambda f, r: f.at_drift(r.drift[-1])[0],
                )
                for rate in method.learning_rates
            }
            rates[method.name] = max(fidelity, key=fidelity.__getitem__)
    return rates


def summary_row(
    runs: Runs, method: Method, rates: Mapping[str, float], compared_with: str = REFERENCE
) -> Row:
    """What is told of a method; figures are means over the subjects' means over seeds.

    Args:
        runs: of the subjects to report.
        method: the method.
        rates: of it, of the reference and of the one it is compared with.
        compared_with: whose front its own is compared with at `DRIFTS`.
    """
    rate = rates[method.name]
    rows = runs.rows(method.name, rate)
    every = [row for of_subject in rows for row in of_subject]
    figures = {
        name: asdict(summarise([mean(row[name] for row in of_subject) for of_subject in rows]))
        for name in _FIGURES
        if every[0][name] is not None
    }
    swept = method.learning_rates
    return {
        "method": method.name,
        **figures,
        **({} if method.name == BASE else _against(runs, method.name, rates, compared_with)),
        "parameters": every[0]["parameters"],
        "adapter_bytes": round(mean(row["adapter_bytes"] for row in every)),
        # The median, since a run may have been suspended meanwhile.
        "train_seconds": median(row["train_seconds"] for row in every),
        "learning_rate": rate,
        "learning_rate_at_edge": len(swept) > 1 and rate in (swept[0], swept[-1]),
        "family": method.family,
        "subjects": len(runs.subjects),
        "seeds": len(runs.seeds),
    }


def _against(runs: Runs, method: str, rates: Mapping[str, float], compared_with: str) -> Row:
    """A method's front beside the reference's at full strength, and beside another's at `DRIFTS`,
    cell by cell.
    """
    own, reference, other = (
        runs.fronts(name, rates[name]) for name in (method, REFERENCE, compared_with)
    )
    told: dict[str, Callable[[Front, Front], float]] = {
        "subject_at_reference_drift": lambda f, r: f.at_drift(r.drift[-1])[0],
        "prompt_at_reference_drift": lambda f, r: f.at_drift(r.drift[-1])[1],
        "subject_difference": lambda f, r: f.at_drift(r.drift[-1])[0] - r.subject_fidelity[-1],
        "prompt_difference": lambda f, r: f.at_drift(r.drift[-1])[1] - r.prompt_fidelity[-1],
        "reaches_reference_drift": lambda f, r: f.reaches_drift(r.drift[-1]),
        "drift_at_reference_fidelity": lambda f, r: f.drift_at(r.subject_fidelity[-1]),
        "drift_ratio": lambda f, r: f.drift_at(r.subject_fidelity[-1]) / r.drift[-1],
        "reaches_reference_fidelity": lambda f, r: f.reaches_fidelity(r.subject_fidelity[-1]),
    }
    summed = {name: asdict(_paired(own, reference, tell)) for name, tell in told.items()}
    line: dict[str, Any] = {
        name: [
            asdict(summarise([mean(getattr(f, name)[i] for f in fs) for fs in own]))
            for i in range(len(STRENGTHS) + 1)
        ]
        for name in ("drift", "subject_fidelity", "prompt_fidelity")
    }
    gain = _over(own, reference, lambda f, r: f.at_drift(r.drift[-1])[0] - f.subject_fidelity[0])
    wanted = _over(own, reference, lambda f, r: r.subject_fidelity[-1] - r.subject_fidelity[0])
    at_drifts = {
        str(drift): {
            "subject_difference": asdict(_paired(own, other, partial(_difference_at, drift=drift))),
            "share_that_reaches": _over(own, other, partial(_both_reach, drift=drift)),
        }
        for drift in DRIFTS
    }
    return {
        **summed,
        "at_drift": at_drifts,
        "share_of_gain": gain / wanted,
        "front": {"strengths": [0.0, *STRENGTHS], **line},
    }


def _difference_at(own: Front, reference: Front, drift: float) -> float:
    return own.at_drift(drift)[0] - reference.at_drift(drift)[0]


def _both_reach(own: Front, reference: Front, drift: float) -> float:
    return float(own.reaches_drift(drift) and reference.reaches_drift(drift))


def _paired(
    own: list[list[Front]], reference: list[list[Front]], tell: Callable[[Front, Front], float]
) -> Figure:
    """Mean and standard error over subjects of their means over seeds."""
    return summarise(
        [
            mean(tell(front, other) for front, other in zip(*of_subject, strict=True))
            for of_subject in zip(own, reference, strict=True)
        ]
    )


def _over(
    own: list[list[Front]], reference: list[list[Front]], tell: Callable[[Front, Front], float]
) -> float:
    """Mean over all cells."""
    return mean(
        tell(front, other)
        for of_subject in zip(own, reference, strict=True)
        for front, other in zip(*of_subject, strict=True)
    )


def flat(row: Mapping[str, Any]) -> Row:
    """A row for the printed table: figures as "mean ± standard error"."""
    return {
        key: f"{value['mean']:.3f} ± {value['stderr']:.3f}"
        if isinstance(value, dict) and "mean" in value
        else value
        for key, value in row.items()
    }
