"""The Inspect page: what an adapter is, what it moved, and what singular values carry."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from .. import plots
from ..inspection import (
    LayerShift,
    facts,
    in_a_sentence,
    layer_shifts,
    most_moved,
    split,
    weight_basis,
)
from ..library import AdapterInfo
from ..services import Services
from .adapter_choice import adapter_choice
from .inspect_exports import build_exports
from .inspect_parts import QUICK, rank_slider, shares, up_to
from .inspect_picture import build_picture
from .problems import explaining, problem_place

_BARS = 10


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            adapter_ = adapter_choice(
                services,
                tab,
                never_empty=True,
                label="Adapter",
                info="A subject that was trained or added.",
                elem_id="inspect-adapter",
            ).field
            problem = problem_place("inspect")
            sentence = gr.HTML(elem_id="inspect-sentence")
            table = gr.HTML(elem_id="inspect-facts", apply_default_css=False)
            build_exports(services, adapter_)
        with gr.Column(scale=6, min_width=320):
            gr.Markdown("## What moved most")
            moved = gr.HTML(elem_id="inspect-moved")
    inspected_ = gr.State(None)
    layer_ = _build_layer(services, inspected_)
    build_picture(services, tab)

    def inspect(name: str | None) -> tuple[Any, str, str, str, Any]:
        if not name:
            return None, "", "", "", gr.update(choices=[], value=None)
        info = services.library.describe(name)
        shifts = [] if info.misfit else layer_shifts(services.base.view(), info.adapter)
        ordered = most_moved(shifts, len(shifts))
        names = [shift.name for shift in ordered]
        return (
            {shift.name: shift for shift in shifts},
            f"<p>{html.escape(in_a_sentence(info))}</p>",
            _facts_table(info),
            _moved_figure(ordered[:_BARS]),
            gr.update(choices=names, value=names[0] if names else None),
        )

    explaining(
        adapter_.change, inspect, adapter_, [inspected_, sentence, table, moved, layer_], problem
    )


def _build_layer(services: Services, inspected_: gr.State) -> gr.Dropdown:
    """One layer: its singular values, their shifts, and what the weight keeps of itself."""
    gr.Markdown("## One layer")
    layer_ = gr.Dropdown(
        label="Layer",
        info="The one that moved most comes first.",
        elem_id="inspect-layer",
    )
    with gr.Row():
        with gr.Column(min_width=320):
            values = gr.HTML(elem_id="inspect-values")
        with gr.Column(min_width=320):
            energy = gr.HTML(elem_id="inspect-energy")
    rank_ = rank_slider("The same weight, rebuilt from this many singular values", "weight")
    weight_line = gr.HTML(elem_id="inspect-weight-line", elem_classes="hint")
    weight = gr.HTML(elem_id="inspect-weight")
    problem = problem_place("inspect", "layer-problem")

    def show(
        shifts: dict[str, LayerShift] | None, name: str | None, rank: float
    ) -> tuple[str, str, Any]:
        if not shifts or name not in shifts:
            return "", "", gr.skip()
        shift = shifts[name]
        return (
            plots.to_svg(
                plots.singular_values(shift),
                f"Singular values of {name}, from {shift.sigma[0]:.3g} down to "
                f"{shift.sigma[-1]:.3g}, and their shifts, {abs(shift.delta).max():.3g} at most.",
            ),
            plots.to_svg(
                plots.energy_by_rank(list(shifts.values()), shift),
                f"Cumulative energy of the singular values of {name} against rank.",
            ),
            up_to(shift.count, rank),
        )

    def show_weight(
        shifts: dict[str, LayerShift] | None, name: str | None, rank: float
    ) -> tuple[str, str]:
        if not shifts or name not in shifts:
            return "", ""
        shift = shifts[name]
        basis = weight_basis(services.base.view(), shift.component, shift.path)
        parts = split([basis], min(int(rank), basis.rank))
        line = shares("weight", parts)
        return line, plots.to_svg(plots.weight_maps(parts), line)

    asked = [inspected_, layer_, rank_]
    explaining(layer_.change, show, asked, [values, energy, rank_], problem, **QUICK)
    explaining(
        functools.partial(gr.on, [layer_.change, rank_.input]),
        show_weight,
        asked,
        [weight_line, weight],
        problem,
        trigger_mode="always_last",
        **QUICK,
    )
    return layer_


def _facts_table(info: AdapterInfo) -> str:
    """Facts as an HTML table; files are written by anyone, so all of it is escaped."""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>"
        for label, value in facts(info)
    )
    return f"<table class='facts'>{rows}</table>"


def _moved_figure(shifts: Sequence[LayerShift]) -> str:
    if not shifts:
        return ""
    described = ", ".join(f"{shift.name} by {shift.moved:.1%}" for shift in shifts[:3])
    return plots.to_svg(plots.moved_layers(shifts), f"Layers that moved most: {described}.")
