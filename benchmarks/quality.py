"""How well subjects are learned: SVFit against LoRA, PiSSA, OFT, (IA)³ and full fine-tuning.

    python -m benchmarks.quality [--quick] [--methods …] [--subjects …] [--seeds 0 1]
        [--base FOLDER_OR_ID] [--subjects_dir FOLDER] [--extractors toybox|hub] [--processes N]

Every method gets a learning rate of its own, chosen from equally many on subjects that are not
reported, by subject fidelity. Then every method learns every subject with every seed, from the
same examples with the same noise. A finished training run is a cell kept on disk: an interrupted
benchmark resumes. Results: `results/quality.json`, `quality_parameters.png`, `quality_rank.png`,
`quality_steps.png` and `quality_samples.jpg`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

from benchmarks import quality_pictures
from benchmarks.cells import Bench, Cell, CellStore, Setup, measure_peak_memory, run_cell
from benchmarks.finetune import Recipe
from benchmarks.methods import METHODS, Method, find_method
from benchmarks.report import RESULTS, ROOT, Row, print_table, write_report
from benchmarks.statistics import Figure, paired, summarise

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
REFERENCE = "LoRA, r=8"
_FIGURES = (
    "subject_fidelity",
    "prompt_fidelity",
    "drift",
    "diversity",
    "photo_similarity",
    "scene_accuracy",
    "class_accuracy",
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
    missing = [cell for cell in cells if not store.has(cell)]
    if not missing:
        return
    started = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        results = executor.map(run_cell, itertools.repeat(store.setup), missing)
        for done, (cell, _) in enumerate(zip(missing, results, strict=True), 1):
            row = store.read(cell)
            left = (time.perf_counter() - started) / done * (len(missing) - done)
            print(
                f"{done}/{len(missing)} {cell.label()}: "
                f"fidelity {row['subject_fidelity']:.3f}, prompt {row['prompt_fidelity']:.3f}, "
                f"drift {row['drift']:.3f}, {row['train_seconds']:.0f} s; "
                f"{left / 60:.0f} min left",
                flush=True,
            )


def choose_rate(store: CellStore, method: Method, subjects: Sequence[str], seed: int) -> float:
    """The learning rate with the highest mean subject fidelity on the tuning subjects."""

    def fidelity(rate: float) -> float:
        cells = [Cell(method.name, rate, subject, seed) for subject in subjects]
        return mean(store.read(cell)["subject_fidelity"] for cell in cells)

    return max(method.learning_rates, key=fidelity)


def summary_row(
    store: CellStore, method: Method, rate: float, subjects: Sequence[str], seeds: Sequence[int]
) -> Row:
    """Mean and standard error of every figure, over the subjects' means over seeds."""
    table = {
        subject: [store.read(Cell(method.name, rate, subject, seed)) for seed in seeds]
        for subject in subjects
    }
    reference = [row for rows in table.values() for row in rows]
    figures: dict[str, Figure] = {}
    for name in _FIGURES:
        if reference[0][name] is not None:
            figures[name] = summarise([mean(r[name] for r in rows) for rows in table.values()])
    rates = method.learning_rates
    return {
        "method": method.name,
        **{name: asdict(figure) for name, figure in figures.items()},
        "parameters": reference[0]["parameters"],
        "adapter_bytes": reference[0]["adapter_bytes"],
        # The median, since a run may have been suspended meanwhile.
        "train_seconds": median(row["train_seconds"] for row in reference),
        "peak_memory_bytes": measure_peak_memory(store.setup, method.name),
        "learning_rate": rate,
        "learning_rate_at_edge": len(rates) > 1 and rate in (rates[0], rates[-1]),
        "family": method.family,
        "subjects": len(subjects),
        "seeds": len(seeds),
    }


def compare_with_reference(
    store: CellStore,
    rates: dict[str, float],
    subjects: Sequence[str],
    seeds: Sequence[int],
) -> list[Row]:
    """Each method's difference from LoRA of rank 8, subject by subject: mean, standard error."""

    def means(method: str, figure: str) -> list[float]:
        return [
            mean(store.read(Cell(method, rates[method], s, seed))[figure] for seed in seeds)
            for s in subjects
        ]

    return [
        {
            "method": method,
            **{
                figure: asdict(paired(means(method, figure), means(REFERENCE, figure)))
                for figure in ("subject_fidelity", "prompt_fidelity", "drift")
            },
        }
        for method in rates
        if method != REFERENCE
    ]


def main() -> None:
    """Sweep the learning rates, run all cells, print the table, write results and pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [method.name for method in METHODS]
    parser.add_argument("--base", default=str(ROOT / "samples" / "toybox"))
    parser.add_argument("--subjects_dir", type=Path, default=ROOT / "samples" / "subjects")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--tuning_subjects", nargs="+", default=list(TUNING_SUBJECTS))
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
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

    started = time.perf_counter()
    recipe = Recipe(steps=options.steps, prior_loss_weight=options.prior_loss_weight)
    setup = Setup(options.base, options.subjects_dir, options.extractors, options.device, recipe)
    store = CellStore(setup)
    Bench(setup).prepare([*options.subjects, *options.tuning_subjects])
    methods = [find_method(name) for name in options.methods]
    seeds = options.seeds

    run_all(
        store,
        [
            Cell(method.name, rate, subject, seeds[0])
            for subject in options.tuning_subjects
            for method in methods
            for rate in method.learning_rates
        ],
        options.processes,
    )
    rates = {
        method.name: choose_rate(store, method, options.tuning_subjects, seeds[0])
        for method in methods
    }
    run_all(
        store,
        [
            Cell(method.name, rates[method.name], subject, seed)
            for seed in seeds
            for subject in options.subjects
            for method in methods
        ],
        options.processes,
    )
    rows = [
        summary_row(store, method, rates[method.name], options.subjects, seeds)
        for method in methods
    ]
    columns = ["method", *_FIGURES, "parameters", "adapter_bytes", "learning_rate"]
    print_table([_flat(row) for row in rows], columns)
    path = write_report(
        options.name,
        rows,
        recipe=asdict(recipe),
        extractors=options.extractors,
        subjects=options.subjects,
        tuning_subjects=options.tuning_subjects,
        seeds=seeds,
        difference_to_reference={
            "reference": REFERENCE,
            "rows": compare_with_reference(store, rates, options.subjects, seeds),
        },
        sweep=[
            {
                "method": method.name,
                "learning_rate": rate,
                "subject": subject,
                **store.read(Cell(method.name, rate, subject, seeds[0])),
            }
            for method in methods
            for rate in method.learning_rates
            for subject in options.tuning_subjects
        ],
        seconds_of_this_run=round(time.perf_counter() - started),
        seconds_of_all_cells=round(store.seconds()),
    )
    print(path)
    quality_pictures.draw_all(options.name, store, rows, rates, options.subjects, seeds)
    print(*sorted(RESULTS.glob(f"{options.name}_*")), sep="\n")


def _flat(row: Row) -> Row:
    """A row for the printed table: figures as "mean ± standard error"."""
    return {
        key: f"{value['mean']:.3f} ± {value['stderr']:.3f}" if isinstance(value, dict) else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    main()
