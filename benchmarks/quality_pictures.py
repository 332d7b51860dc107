"""Pictures of the quality benchmark: curves, and samples of the methods side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.cells import CURVE_METHODS, Cell, CellStore
from benchmarks.quality_rows import REFERENCE
from benchmarks.report import RESULTS, Row
from benchmarks.statistics import summarise
from benchmarks.subjects import read_subject
from svfit_diffusion.training.grid import labelled_grid

_PANELS = {
    "subject_fidelity": "subject fidelity",
    "prompt_fidelity": "prompt fidelity",
    "drift": "drift (less is better)",
}
_EQUAL_PANELS = {
    "subject_at_reference_drift": f"subject fidelity at the drift of {REFERENCE}",
    "prompt_at_reference_drift": f"prompt fidelity at the drift of {REFERENCE}",
    "drift_at_reference_fidelity": f"drift at the fidelity of {REFERENCE} (less is better)",
}
_FRONT_METHODS = (
    "SVFit",
    "SVFit, all layers",
    "SVFit, all layers, as many",
    "SVFit, budget 1000",
    "SVFit, rank 32",
    "SVFit, own word",
    "SVFit, all layers, own word",
    "word alone",
    "LoRA, r=8",
    "LoRA, r=8, own word",
    "LoRA, r=1",
    "PiSSA, r=8",
    "OFT, r=8",
    "PSOFT, r=16",
    "TinyLoRA, u=192",
    "(IA)³",
    "full",
)
"""In the plot of fronts, which more would fill up."""

_SAMPLE_METHODS = (
    "none",
    "SVFit",
    "SVFit, own word",
    "word alone",
    "SVFit, all layers",
    "SVFit, budget 1000",
    "LoRA, r=8",
    "LoRA, r=1",
    "PiSSA, r=8",
    "OFT, r=8",
    "(IA)³",
    "full",
)
_TILE = 96


def draw_all(
    name: str,
    store: CellStore,
    rows: Sequence[Row],
    rates: dict[str, float],
    subjects: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Draw all that the rows allow, as `results/NAME_….png` and `.jpg`."""
    _draw_fronts(rows).savefig(RESULTS / f"{name}_fronts.png", dpi=110)
    _draw_parameters(rows).savefig(RESULTS / f"{name}_parameters.png", dpi=110)
    by_rank = [row for row in rows if row["family"] == "SVFit"]
    if len(by_rank) > 1:
        _draw_rank(by_rank, rows).savefig(RESULTS / f"{name}_rank.png", dpi=110)
    curves = [method for method in CURVE_METHODS if method in rates]
    if 0 in seeds and curves:
        figure = _draw_steps(store, {method: rates[method] for method in curves}, subjects)
        figure.savefig(RESULTS / f"{name}_steps.png", dpi=110)
    plt.close("all")
    cells = [Cell(m, rates[m], s, seeds[0]) for m in _sampled(rates) for s in subjects]
    if lacking := sum(not store.has_images(cell) for cell in cells):
        print(f"no {name}_samples.jpg: {lacking} of {len(cells)} cells were drawn elsewhere")
    else:
        samples = _draw_samples(store, rates, subjects, seeds[0])
        samples.save(RESULTS / f"{name}_samples.jpg", quality=90)


def _panels(labels: Collection[str]) -> tuple[Any, Any]:
    figure, panels = plt.subplots(1, len(labels), figsize=(5 * len(labels), 4.2))
    for panel, label in zip(panels, labels, strict=True):
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    return figure, panels


def _draw_fronts(rows: Sequence[Row]) -> Any:
    """Methods as lines from the base to full strength: what fidelity costs in drift, and one
    fidelity against the other.
    """
    figure, panels = plt.subplots(1, 3, figsize=(17, 5.5), layout="constrained")
    axes = (
        ("drift", "subject_fidelity"),
        ("drift", "prompt_fidelity"),
        ("prompt_fidelity", "subject_fidelity"),
    )
    for panel, keys in zip(panels, axes, strict=True):
        panel.set_prop_cycle(color=[*plt.get_cmap("tab10").colors, "black", "gold"])
        for row in rows:
            if row["method"] in _FRONT_METHODS:
                points = ([point["mean"] for point in row["front"][key]] for key in keys)
                style = "o-" if row["family"].startswith("SVFit") else "s--"
                panel.plot(*points, style, ms=4, label=row["method"])
        across, up = keys
        panel.set_xlabel(_PANELS[across])
        panel.set_ylabel(_PANELS[up])
        panel.grid(alpha=0.3)
    named = panels[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=5, fontsize=9)  # lines fill the panels
    figure.suptitle("At strengths 0, 0.5, 0.7, 0.85 and 1; means over subjects")
    return figure


def _draw_parameters(rows: Sequence[Row]) -> Any:
    """Every method at its number of trained values."""
    figure, panels = _panels(_EQUAL_PANELS.values())
    for panel, key in zip(panels, _EQUAL_PANELS, strict=True):
        for family in dict.fromkeys(row["family"] for row in rows if row["family"] != "base"):
            of_family = [row for row in rows if row["family"] == family]
            of_family.sort(key=lambda row: row["parameters"])
            panel.errorbar(
                [row["parameters"] for row in of_family],
                [row[key]["mean"] for row in of_family],
                [row[key]["stderr"] for row in of_family],
                fmt="o-",
                capsize=3,
                label=family,
            )
        panel.set_xscale("log")
        panel.set_xlabel("trained values")
    panels[0].legend(fontsize=8)
    figure.suptitle("Mean and standard error over subjects")
    figure.tight_layout()
    return figure


def _draw_rank(by_rank: Sequence[Row], rows: Sequence[Row]) -> Any:
    """SVFit's ranks and energies by the values they train, LoRA of rank 8 as a line."""
    figure, panels = _panels(_EQUAL_PANELS.values())
    ordered = sorted(by_rank, key=lambda row: row["parameters"])
    lora = next(row for row in rows if row["method"] == REFERENCE)
    for panel, key in zip(panels, _EQUAL_PANELS, strict=True):
        panel.errorbar(
            range(len(ordered)),
            [row[key]["mean"] for row in ordered],
            [row[key]["stderr"] for row in ordered],
            fmt="o-",
            capsize=3,
            label="SVFit",
        )
        panel.axhline(lora[key]["mean"], color="tab:red", ls="--", label=REFERENCE)
        labels = [row["method"].removeprefix("SVFit, ") for row in ordered]
        labels = ["full rank" if label == "SVFit" else label for label in labels]
        panel.set_xticks(range(len(ordered)), labels, rotation=20)
    panels[0].legend()
    figure.suptitle("Quality against the number of singular values per weight")
    figure.tight_layout()
    return figure


def _draw_steps(store: CellStore, rates: dict[str, float], subjects: Sequence[str]) -> Any:
    """Runs judged on the way, with the first seed."""
    figure, panels = _panels(_PANELS.values())
    total = store.setup.recipe.steps
    for method, rate in rates.items():
        cells = [store.read(Cell(method, rate, subject, 0)) for subject in subjects]
        looks = [{**{int(s): r for s, r in cell["looks"].items()}, total: cell} for cell in cells]
        steps = sorted(looks[0])
        for panel, key in zip(panels, _PANELS, strict=True):
            figures = [summarise([look[step][key] for look in looks]) for step in steps]
            panel.errorbar(
                steps,
                [figure.mean for figure in figures],
                [figure.stderr for figure in figures],
                fmt="o-",
                capsize=3,
                label=f"{method} (learning rate {rate:g})",
            )
            panel.set_xlabel("steps")
    panels[0].legend(fontsize=8)
    figure.suptitle("Quality on the way through one run")
    figure.tight_layout()
    return figure


def _sampled(rates: Collection[str]) -> list[str]:
    return [method for method in _SAMPLE_METHODS if method in rates]


def _draw_samples(
    store: CellStore, rates: dict[str, float], subjects: Sequence[str], seed: int
) -> Image.Image:
    """A row for each subject: a photo, then one method after the other on a new scene."""
    methods = _sampled(rates)
    lines, labels = [], []
    for number, name in enumerate(subjects):
        subject = read_subject(store.setup.subjects_dir / name)
        contexts = [i for i, p in enumerate(subject.prompts) if p.kind == "context"]
        index = contexts[number % len(contexts)]
        images = [store.image(Cell(m, rates[m], name, seed), index) for m in methods]
        lines.append([subject.photos()[0], *images])
        labels.append(subject.prompts[index].text)
    # Short enough for a column, in letters that its font has.
    columns = [method.removeprefix("SVFit, ").replace("³", "3") for method in methods]
    return labelled_grid(lines, labels, ["photo", *columns], tile=_TILE)
