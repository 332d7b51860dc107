"""What finished runs of a task say: learning rates, and rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from benchmarks.report import Row
from benchmarks.row_store import RowStore
from benchmarks.statistics import paired, summarise
from benchmarks.tasks.runs import TaskCell
from benchmarks.tasks.task_methods import REFERENCE, TaskMethod


def sweep(methods: Sequence[TaskMethod], seed: int) -> list[TaskCell]:
    """The runs by which learning rates are chosen."""
    return [TaskCell(m.name, rate, seed) for m in methods for rate in m.learning_rates]


def choose_rates(store: RowStore, methods: Sequence[TaskMethod], seed: int) -> dict[str, float]:
    """Each method's learning rate with the best accuracy on the validation examples.

    Of equally good ones it is the lower.
    """

    def best(method: TaskMethod) -> float:
        found = {r: store.read(TaskCell(method.name, r, seed)) for r in method.learning_rates}
        return max(sorted(found), key=lambda rate: found[rate]["validation"])

    return {method.name: best(method) for method in methods}


def summary_rows(
    store: RowStore,
    methods: Sequence[TaskMethod],
    rates: Mapping[str, float],
    seeds: Sequence[int],
) -> list[Row]:
    """A row for each method: accuracy over the seeds, and its difference to LoRA's, seed by seed.

    Args:
        store: with the runs of all methods, LoRA of rank 8 among them, at their rates.
        methods: to report.
        rates: of each.
        seeds: of each.
    """

    def runs(name: str) -> list[Row]:
        return [store.read(TaskCell(name, rates[name], seed)) for seed in seeds]

    reference = [row["test"] for row in runs(REFERENCE)]
    rows = []
    for method in methods:
        found = runs(method.name)
        tests = [row["test"] for row in found]
        rows.append(
            {
                "method": method.name,
                "family": method.family,
                "values": found[0]["values"],
                "learning_rate": rates[method.name],
                "rate_at_edge": rates[method.name]
                in (min(method.learning_rates), max(method.learning_rates)),
                "test": asdict(summarise(tests)),
                "to_reference": asdict(paired(tests, reference)),
                "validation": fmean(row["validation"] for row in found),
                "train_seconds": fmean(row["train_seconds"] for row in found),
            }
        )
    return rows
