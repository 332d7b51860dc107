"""The Inspect page: what an adapter is, what it moved, and what singular values carry."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from svfit_diffusion.spectrum.basis import Basis

from .. import plots
from ..errors import UploadError
from ..inspection import (
    LayerShift,
    Split,
    as_picture,
    as_stretched_picture,
    facts,
    image_bases,
    layer_shifts,
    most_moved,
    sample_picture,
    split,
    weight_basis,
)
from ..library import AdapterInfo
from ..photos import take_in
from ..services import Services
from .adapter_choice import adapter_choice
from .messages import plain_errors

_BARS = 10
_START_RANK = 8
_SEEN_SIDE = 256
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", **_PRIVATE}


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
            table = gr.HTML(elem_id="inspect-facts", apply_default_css=False)
            _build_exports(services, adapter_)
        with gr.Column(scale=6, min_width=320):
            gr.Markdown("### What moved most")
            moved = gr.HTML(elem_id="inspect-moved")
    inspected_ = gr.State(None)
    layer_ = _build_layer(services, inspected_)
    _build_picture(services, tab)

    def inspect(name: str | None) -> tuple[Any, str, str, Any]:
        if not name:
            return None, "", "", gr.update(choices=[], value=None)
        with plain_errors():
            info = services.library.describe(name)
            shifts = [] if info.misfit else layer_shifts(services.base.view(), info.adapter)
        ordered = most_moved(shifts, len(shifts))
        names = [shift.name for shift in ordered]
        return (
            {shift.name: shift for shift in shifts},
            _facts_table(info),
            _moved_figure(ordered[:_BARS]),
            gr.update(choices=names, value=names[0] if names else None),
        )

    adapter_.change(inspect, adapter_, [inspected_, table, moved, layer_], **_PRIVATE)


def _build_exports(services: Services, adapter_: gr.Dropdown) -> None:
    """Downloads of the chosen adapter in every form there is."""
    gr.HTML(
        "The adapter file is all one needs beside the base model. A merged pipeline is a whole "
        "model with the subject in it, for programs that know nothing of adapters.",
        elem_classes="hint",
    )
    with gr.Row():
        file = gr.DownloadButton(
            "Adapter file", interactive=False, min_width=140, elem_id="inspect-download"
        )
        merge = gr.Button("Build merged pipeline", min_width=140, elem_id="inspect-merge")
    merged = gr.DownloadButton(visible=False, elem_id="inspect-merged")

    def chosen(name: str | None) -> tuple[Any, Any]:
        with plain_errors():
            path = (
                str(services.exports.adapter_file(name, services.library.path(name)))
                if name
                else None
            )
        return gr.update(value=path, interactive=path is not None), gr.update(visible=False)

    def prepare(name: str | None) -> Any:
        with plain_errors():
            source = services.library.path(name or "")
            path = services.exports.merged_pipeline(name or "", source)
        label = f"Download {path.name} ({path.stat().st_size / 2**20:.0f} MiB)"
        return gr.update(value=str(path), label=label, visible=True)

    adapter_.change(chosen, adapter_, [file, merged], **_QUICK)
    merge.click(
        prepare, adapter_, merged, concurrency_id="exports", concurrency_limit=1, **_PRIVATE
    )


def _build_layer(services: Services, inspected_: gr.State) -> gr.Dropdown:
    """One layer: its singular values, their shifts, and what the weight keeps of itself."""
    gr.Markdown("### One layer")
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
    rank_ = _rank_slider("The same weight, rebuilt from this many singular values", "weight")
    weight_line = gr.HTML(elem_id="inspect-weight-line", elem_classes="hint")
    weight = gr.HTML(elem_id="inspect-weight")

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
            _up_to(shift.sigma.size, rank),
        )

    def show_weight(
        shifts: dict[str, LayerShift] | None, name: str | None, rank: float
    ) -> tuple[str, str]:
        if not shifts or name not in shifts:
            return "", ""
        with plain_errors():
            shift = shifts[name]
            basis = weight_basis(services.base.view(), shift.component, shift.path)
        parts = split([basis], min(int(rank), basis.rank))
        line = _shares("weight", parts)
        return line, plots.to_svg(plots.weight_maps(parts), line)

    layer_.change(show, [inspected_, layer_, rank_], [values, energy, rank_], **_QUICK)
    gr.on(
        [layer_.change, rank_.input],
        show_weight,
        [inspected_, layer_, rank_],
        [weight_line, weight],
        trigger_mode="always_last",
        **_QUICK,
    )
    return layer_


def _build_picture(services: Services, tab: gr.Tab) -> None:
    """What the singular values of a picture carry, as in figure 1 of the SVFit paper."""
    gr.Markdown("### A picture, as its singular values make it")
    gr.HTML(
        "A picture is three matrices, red, green and blue. A few of their largest singular values "
        "carry most of what one sees, the smallest next to nothing. A weight is a matrix as well.",
        elem_classes="hint",
    )
    bases_ = gr.State(None)
    with gr.Row():
        rank_ = _rank_slider("Singular values per colour", "picture")
        upload = gr.UploadButton(
            "Use a picture of yours",
            file_types=["image"],
            scale=0,
            min_width=200,
            elem_id="inspect-upload",
        )
    line = gr.HTML(elem_id="inspect-picture-line", elem_classes="hint")
    pictures = gr.Gallery(
        label="Whole, largest, smallest",
        format="png",
        columns=3,
        height="auto",
        object_fit="contain",
        interactive=False,
        elem_id="inspect-pictures",
        elem_classes="compact",
    )

    def sample(bases: list[Basis] | None, rank: float) -> tuple[Any, ...]:
        if bases is not None:
            return (gr.skip(),) * 4
        return opened(sample_picture(), rank)

    def uploaded(file: str, rank: float) -> tuple[Any, ...]:
        with plain_errors():
            photos, refusals = take_in([Path(file)], services.limits)
            if refusals:
                raise UploadError(str(refusals[0]))
        return opened(photos[0].image, rank)

    def opened(image: Image.Image, rank: float) -> tuple[Any, ...]:
        bases = image_bases(image)
        full = bases[0].rank
        return bases, _up_to(full, rank), *show(bases, min(rank, full))

    def show(bases: list[Basis] | None, rank: float) -> tuple[Any, ...]:
        if bases is None:
            return gr.skip(), gr.skip()
        parts = split(bases, int(rank))
        tiles = [
            (_seen(as_picture(parts.whole)), "whole"),
            (_seen(as_picture(parts.leading)), "largest"),
            (_seen(as_stretched_picture(parts.trailing)), "smallest"),
        ]
        return f"{_shares('picture', parts)} The last is shown in full contrast.", tiles

    shown = [bases_, rank_, line, pictures]
    tab.select(sample, [bases_, rank_], shown, **_QUICK)
    upload.upload(uploaded, [upload, rank_], shown, **_PRIVATE)
    rank_.input(
        show,
        [bases_, rank_],
        [line, pictures],
        trigger_mode="always_last",
        **_QUICK,
    )


def _rank_slider(label: str, name: str) -> gr.Slider:
    return gr.Slider(
        1,
        64,
        value=_START_RANK,
        step=1,
        label=label,
        info="That many of the largest, and that many of the smallest.",
        elem_id=f"inspect-{name}-rank",
    )


def _up_to(full_rank: int, rank: float) -> Any:
    """An update of a rank slider: it ends at `full_rank`, and stays where it is if it can."""
    moved: dict[str, Any] = {"value": full_rank} if rank > full_rank else {}
    return gr.update(maximum=full_rank, **moved)


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


def _shares(what: str, parts: Split) -> str:
    return (
        f"Of the {what}'s Frobenius norm, the {parts.rank} largest of {parts.full_rank} singular "
        f"values carry {_percent(parts.leading_share)}, the {parts.rank} smallest "
        f"{_percent(parts.trailing_share)}."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _seen(picture: Image.Image) -> Image.Image:
    """A small picture enlarged as it is, so that browsers do not blur what is to be seen."""
    factor = max(1, _SEEN_SIDE // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)
