"""Figures, and how they reach a page: as SVG whose lines and letters take the page's own colour.

Figures are made without pyplot, which keeps them in a global list and belongs to one thread.
"""

from __future__ import annotations

import io
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .inspection import LayerShift, Split

matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not outlines of letters
matplotlib.rcParams["text.parse_math"] = False  # a name with two $ is no formula

INK = "#010203"
"""Stands for the page's text colour, black on white or white on black."""

BLUE = "#3b82f6"
ORANGE = "#ea580c"
"""Both at least 3:1 against white and against the dark page."""

_WIDTH = 4.2  # inches: letters are readable on a phone and not huge on a desk
_SMOOTHING = 0.95
_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")  # pages know it by no other
_drawing = threading.Lock()  # matplotlib promises nothing about threads


def to_svg(figure: Figure, description: str) -> str:
    """A figure as an SVG element to put into a page, as wide as its place.

    Args:
        figure: drawn with `INK` where it should take the page's text colour.
        description: says what it shows to whom cannot see it.
    """
    buffer = io.BytesIO()
    with _drawing:
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for defs in root.findall(f"{{{_SVG}}}defs"):
        for style in defs.findall(f"{{{_SVG}}}style"):
            defs.remove(style)  # it would hold for every icon of the page
    root.attrib.pop("height")
    root.attrib.update({"width": "100%", "role": "img", "aria-label": description})
    root.set("style", "max-width: 28rem; stroke-linejoin: round; margin: auto; display: block")
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


def smoothed(values: Sequence[float], memory: float = _SMOOTHING) -> np.ndarray:
    """Running mean `(n,)` that forgets by `memory` per step, unbiased from the start."""
    means = np.empty(len(values))
    total = weight = 0.0
    for i, value in enumerate(values):
        total = memory * total + value
        weight = memory * weight + 1
        means[i] = total / weight
    return means


def training_curves(losses: Sequence[float], drifts: Sequence[float], total_steps: int) -> Figure:
    """Loss, each step's and smoothed, above the drift of the singular values, by step.

    Args:
        losses: of each step done, `(n,)`.
        drifts: `‖δ‖ / ‖σ⁰‖` after each, `(n,)`.
        total_steps: of the whole run.
    """
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    loss, drift = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, len(losses) + 1)
    loss.plot(steps, losses, color=INK, alpha=0.25, linewidth=0.8, label="each step")
    loss.plot(steps, smoothed(losses), color=BLUE, linewidth=2, label="smoothed")
    if losses:
        _legend(loss)
    drift.plot(steps, drifts, color=ORANGE, linewidth=2)
    drift.set_xlim(0, max(total_steps, 1))
    drift.set_ylim(bottom=0)
    drift.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _label(loss, "", "loss")
    _label(drift, "step", "σ drift")
    return figure


def singular_values(shift: LayerShift) -> Figure:
    """σ⁰ of one layer, on a logarithmic scale, above its shifts δ."""
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    base, moved = figure.subplots(2, sharex=True)
    base.semilogy(np.arange(1, shift.sigma.size + 1), shift.sigma, color=BLUE, linewidth=2)
    base.yaxis.set_major_formatter("{x:g}")
    places = np.arange(1, shift.delta.size + 1)
    moved.fill_between(places, shift.delta, step="mid", color=ORANGE)
    moved.axhline(0, color=INK, linewidth=0.8)
    moved.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(base, "", "σ⁰, of the base")
    _label(moved, "number i of the singular value", "δ, learned")
    return figure


def moved_layers(shifts: Sequence[LayerShift]) -> Figure:
    """How far the singular values of layers moved, a bar each, the first on top."""
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.42 * len(shifts)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shifts))
    axes.barh(places, [shift.moved for shift in shifts], height=0.35, color=ORANGE)
    for place, shift in zip(places, shifts, strict=True):
        # Above the bar rather than beside it: module paths are long and phones narrow.
        axes.text(0, place - 0.24, f" {shift.name}", fontsize=7.5, color=INK, va="bottom")
    axes.set_ylim(len(shifts) - 0.6, -0.8)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    _label(axes, "‖δ‖ / ‖σ⁰‖", "")
    return figure


def energy_by_rank(shifts: Sequence[LayerShift], chosen: LayerShift) -> Figure:
    """Cumulative energy of σ⁰ against the share of singular values kept, `chosen` standing out; as
    far as they are known, of the band those of all layers.

    Args:
        shifts: all layers, at least `chosen`.
        chosen: the one to point out.
    """
    figure = Figure(figsize=(_WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    known = [_energy_curve(shift) for shift in shifts]
    grid = np.linspace(0, min(share[-1] for share, _ in known), 101)
    curves = [np.interp(grid, *curve) for curve in known]
    lowest, highest = np.min(curves, axis=0), np.max(curves, axis=0)
    axes.fill_between(grid, lowest, highest, color=INK, alpha=0.15, linewidth=0, label="all layers")
    share, energy = _energy_curve(chosen)
    axes.plot(share, energy, color=BLUE, linewidth=2, label="chosen layer")
    for level, marker in ((0.9, "o"), (0.99, "s")):
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=":")
        rank = int(np.searchsorted(energy, level))
        if rank == energy.size:
            continue  # more than are known
        axes.plot(
            rank / chosen.count,
            energy[rank],
            marker,
            color=ORANGE,
            label=f"{level:.0%} with {rank} of {chosen.count}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes)
    _label(axes, "singular values kept", "energy kept")
    return figure


def weight_maps(split: Split) -> Figure:
    """A weight, its leading and its trailing part, `(1, m, n)` each, on one scale of colours."""
    figure = Figure(figsize=(_WIDTH, 2.0), layout="constrained")
    largest = float(np.quantile(np.abs(split.whole), 0.995))
    titles = ("whole", f"largest {split.rank}", f"smallest {split.rank}")
    parts = (split.whole, split.leading, split.trailing)
    panels = figure.subplots(1, 3)
    for axes, title, part in zip(panels, titles, parts, strict=True):
        picture = axes.imshow(part[0], cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        axes.set_title(title, color=INK, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.9)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _energy_curve(shift: LayerShift) -> tuple[np.ndarray, np.ndarray]:
    """Share of singular values kept and of energy kept, from none to all known, `(m + 1,)` each."""
    energy = np.concatenate([[0.0], shift.cumulative_energy])
    return np.arange(energy.size) / shift.count, energy


def _label(axes: Axes, x: str, y: str) -> None:
    """Names of the axes, and everything around the curves in the page's colour."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
