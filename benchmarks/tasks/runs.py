"""Training runs of a task, whose figures are kept."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.report import Row
from benchmarks.row_store import RUNS, RowStore
from benchmarks.tasks.examples import drawn
from benchmarks.tasks.task_loading import Sizes, Task, load_task
from benchmarks.tasks.task_methods import find_method
from benchmarks.tasks.training import Recipe, accuracy, train, trained_parameters


@dataclass(frozen=True)
class Setup:
    """What all runs of a benchmark share; those of another do not compare.

    Attributes:
        task: one of `task_loading.TASKS`.
        recipe: of training.
        sizes: of the task.
        device: where to train.
        runs: folder of the files of finished runs.
    """

    task: str
    recipe: Recipe
    sizes: Sizes
    device: str = "cpu"
    runs: Path = RUNS

    @property
    def path(self) -> Path:
        """Of the file of finished runs: another for other settings, but not for another device:
        what it rounds otherwise has changed no figure.
        """
        settings = {"task": self.task, "recipe": asdict(self.recipe), "sizes": asdict(self.sizes)}
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return self.runs / f"{self.task}_{digest[:12]}.jsonl"

    def store(self) -> RowStore:
        """The finished runs."""
        return RowStore(self.path)


@dataclass(frozen=True)
class TaskCell:
    """One training run.

    Attributes:
        method: its name.
        learning_rate: at its peak.
        seed: of the examples to learn from, their order, and the method's first values.
    """

    method: str
    learning_rate: float
    seed: int

    def label(self) -> str:
        """For people."""
        return f"{self.method}, {self.learning_rate:g}, seed {self.seed}"


def run(task: Task, setup: Setup, cell: TaskCell) -> Row:
    """Train once and judge.

    Returns:
        accuracies on `validation` and `test`, the `values` trained and kept beside the head's, the
        mean `loss` of the last tenth of the steps, the `device`, and seconds.
    """
    started = time.perf_counter()
    examples = drawn(task.pool, setup.sizes.train, cell.seed)
    torch.manual_seed(cell.seed)  # PEFT draws its first values
    classifier = task.classifier()
    method = find_method(cell.method)
    classifier.encoder = method.adapt(classifier.encoder)
    classifier.to(setup.device)
    clock = time.perf_counter()
    losses = list(
        train(
            classifier,
            examples,
            setup.recipe,
            cell.learning_rate,
            cell.seed,
            setup.device,
            method.budget,
        )
    )
    trained = time.perf_counter() - clock
    return {
        "validation": accuracy(classifier, task.validation, setup.device),
        "test": accuracy(classifier, task.test, setup.device),
        "values": method.budget or sum(p.numel() for p in trained_parameters(classifier.encoder)),
        "loss": fmean(losses[-max(1, len(losses) // 10) :]),
        "device": setup.device,
        "train_seconds": trained,
        "seconds": time.perf_counter() - started,
    }


def run_cell(setup: Setup, cell: TaskCell) -> None:
    """Run a cell in a worker process and keep it."""
    torch.set_num_threads(1)
    setup.store().write(cell, run(load_task(setup.task, setup.sizes), setup, cell))
