"""How well subjects are learned: SVFit against its peers and full fine-tuning, as fronts.

    python -m benchmarks.quality [--quick] [--methods …] [--subjects …] [--seeds 0 1]
        [--base FOLDER_OR_ID] [--subjects_dir FOLDER] [--extractors toybox|hub] [--processes N]
        [--compared_with METHOD]

Every method learns every subject with every seed, from the same examples with the same noise, and
is judged at four strengths: a line of drift against fidelity. Lines are compared at the drift that
LoRA of rank 8 has at full strength, subject by subject. Every method gets a learning rate of its
own, chosen from equally many, by subject fidelity at that drift on subjects that are not reported.
A finished training run is a line in `results/runs`, which is committed: an interrupted benchmark
goes on there, on any machine, and with other settings begins anew, as it does where that file is
deleted (`--quick` keeps its own on this machine). Results: `results/quality.json`,
`quality_fronts.png`, `quality_parameters.png`, `quality_rank.png`, `quality_steps.png` and
`quality_samples.jpg`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import quality_pictures
from benchmarks.bench import Bench, measure_peak_memory, run_cell
from benchmarks.cells import Cell, CellStore, Setup
from benchmarks.finetune import Recipe
from benchmarks.methods import IDEAS, METHODS, Method
from benchmarks.quality_rows import BASE, REFERENCE, Runs, choose_rates, flat, summary_row
from benchmarks.report import CACHE, RESULTS, ROOT, Row, print_table, write_report
from benchmarks.row_store import RUNS, run_missing

TUNING_SUBJECTS = ("poodle", "beach_umbrella")
SUBJECTS = (
    "pug",
    "tuxedo_cat",
    "violet_owl",
    "blue_car",
    "school_bus",
    "satchel",
    "yellow_sneaker",
    "blue_clock",
    "teal_ghost",
    "teal_robot",
)
_COLUMNS = (
    "method",
    "parameters",
    "adapter_bytes",
    "learning_rate",
    "subject_fidelity",
    "prompt_fidelity",
    "drift",
    "subject_difference",
    "prompt_difference",
    "drift_ratio",
)
_QUICK = {
    "subjects": ["blue_car", "teal_ghost"],
    "tuning_subjects": ["beach_umbrella"],
    "methods": ["none", "SVFit", "SVFit, budget 1000", REFERENCE, "(IA)³"],
    "seeds": [0],
    "steps": 100,
}


def run_all(store: CellStore, cells: Sequence[Cell], processes: int) -> None:
    """Run the cells that are not in the store yet, on some processes of one thread each."""
    run_missing(run_cell, store.setup, store, cells, processes, _described)


def main() -> None:
    """Sweep the learning rates, run all cells, print the table, write results and pictures."""
    options = _parsed()
    started = time.perf_counter()
    recipe = Recipe(steps=options.steps, prior_loss_weight=options.prior_loss_weight)
    setup = Setup(
        options.base,
        options.subjects_dir,
        options.extractors,
        options.device,
        recipe,
        CACHE / "runs" if options.quick else RUNS,
    )
    store = CellStore(setup)
    Bench(setup).prepare([*options.subjects, *options.tuning_subjects])
    # What the others are compared with is always there.
    wanted = {BASE, REFERENCE, options.compared_with, *options.methods}
    methods = [m for m in (*METHODS, *IDEAS) if m.name in wanted]
    tuning, seeds = options.tuning_subjects, options.seeds

    sweep = _sweep(methods, tuning, seeds[0])
    run_all(store, sweep, options.processes)
    rates = choose_rates(Runs(store, tuning, seeds[:1]), methods)
    reported = [
        Cell(method.name, rates[method.name], subject, seed)
        for seed in seeds
        for subject in options.subjects
        for method in methods
    ]
    run_all(store, reported, options.processes)
    runs = Runs(store, options.subjects, seeds)
    rows = [
        summary_row(runs, method, rates, options.compared_with)
        | {"peak_memory_bytes": measure_peak_memory(setup, method.name)}
        for method in methods
    ]
    print_table([flat(row) for row in rows], _COLUMNS)
    path = write_report(
        options.name,
        rows,
        recipe=asdict(recipe),
        extractors=options.extractors,
        subjects=options.subjects,
        tuning_subjects=tuning,
        seeds=seeds,
        reference=REFERENCE,
        compared_with=options.compared_with,
        sweep=[_swept(cell) | store.read(cell) for cell in sweep],
        seconds_of_this_run=round(time.perf_counter() - started),
        seconds_of_all_cells=round(store.seconds()),
    )
    print(path)
    quality_pictures.draw_all(options.name, store, rows, rates, options.subjects, seeds)
    print(*sorted(RESULTS.glob(f"{options.name}_*")), sep="\n")


def _parsed() -> argparse.Namespace:
    """The command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [method.name for method in METHODS]
    known = [method.name for method in (*METHODS, *IDEAS)]
    parser.add_argument("--base", default=str(ROOT / "samples" / "toybox"))
    parser.add_argument("--subjects_dir", type=Path, default=ROOT / "samples" / "subjects")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--tuning_subjects", nargs="+", default=list(TUNING_SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=known, default=names)
    parser.add_argument(
        "--compared_with", choices=known, default=REFERENCE, help="in differences at equal drift"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--prior_loss_weight", type=float, default=Recipe.prior_loss_weight)
    parser.add_argument("--extractors", choices=["toybox", "hub"], default="toybox")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--name", default="quality", help="of the results")
    parser.add_argument("--quick", action="store_true", help="a reduced version, quality_quick")
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**_QUICK, name="quality_quick")
        options = parser.parse_args()
    return options


def _sweep(methods: Sequence[Method], subjects: Sequence[str], seed: int) -> list[Cell]:
    """The cells by which learning rates are chosen."""
    return [
        Cell(method.name, rate, subject, seed)
        for method in methods
        for rate in method.learning_rates
        for subject in subjects
    ]


def _swept(cell: Cell) -> Row:
    """Which cell of the sweep it is, for the report."""
    return {name: value for name, value in asdict(cell).items() if name != "seed"}


def _described(row: Row) -> str:
    return (
        f"fidelity {row['subject_fidelity']:.3f}, prompt {row['prompt_fidelity']:.3f}, "
        f"drift {row['drift']:.3f}, {row['train_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
