"""The Compare page: the same noise under settings that vary along two axes, as a labelled grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..comparison import BASE_MODEL, MIX, AxisKind, compare, grid_pixels, parse_axis
from ..errors import at_field
from ..generation import concurrent_drawings
from ..png_metadata import save_picture
from ..services import Services
from .controls import (
    Mixer,
    Sampling,
    mixer,
    picture_settings,
    prompt_box,
    sampling,
    seed_box,
)
from .messages import for_programs, said, status, watch
from .problems import explaining, problem_place

_SUGGESTIONS = {
    AxisKind.NONE: "",
    AxisKind.STRENGTH: "0, 0.7, 0.85, 1, 1.15",
    AxisKind.PROMPT: "a photo of sks car in the snow\na photo of sks car on a wooden floor",
    AxisKind.SEED: "1, 2",
    AxisKind.GUIDANCE: "1, 2, 3, 5",
    AxisKind.STEPS: "5, 10, 20",
}
_HINTS = {
    AxisKind.NONE: "One row or column.",
    AxisKind.ADAPTER: f"Names, “{BASE_MODEL}” for none, “{MIX}” for those chosen, all together.",
    AxisKind.STRENGTH: "Of every adapter chosen; 0 is the base model, 1 as trained.",
    AxisKind.PROMPT: "One prompt a line.",
    AxisKind.SEED: "Whole numbers with commas between them.",
    AxisKind.GUIDANCE: "Numbers with commas between them.",
    AxisKind.STEPS: "Whole numbers with commas between them.",
}

_IN_WORDS = """(prompt, x, xs, y, ys) => {
  const axis = (place, kind, values) =>
    kind === "nothing" ? "" : `; ${place}: ${kind} ${values}`;
  const axes = axis("columns", x, xs) + axis("rows", y, ys);
  svfit.describe("compare-grid", `Comparison of ${prompt}${axes}`);
}"""


@dataclass(frozen=True)
class _AxisFields:
    """The fields of one axis."""

    kind: gr.Dropdown
    values: gr.Textbox


@dataclass(frozen=True)
class _Parts:
    """The components of the page that do something."""

    prompt: gr.Textbox
    x: _AxisFields
    y: _AxisFields
    go: gr.Button
    halt: gr.Button
    line: gr.HTML
    problem: gr.HTML
    grid: gr.Image
    download: gr.DownloadButton
    mixer: Mixer
    seed: gr.Number
    sampling: Sampling


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row(elem_classes="studio"):
        parts = _lay_out(services, tab)
    _wire_suggestions(parts)
    _wire_drawing(services, parts)


def _lay_out(services: Services, tab: gr.Tab) -> _Parts:
    with gr.Column(elem_classes="ask"):
        prompt = prompt_box(services, "compare")
        with gr.Row():
            x = _axis_fields("x", "Columns", AxisKind.STRENGTH)
            y = _axis_fields("y", "Rows", AxisKind.SEED)
        with gr.Row():
            go = gr.Button("Compare", variant="primary", scale=3, elem_id="compare-go")
            halt = gr.Button("Stop", scale=1, min_width=80, elem_id="compare-stop")
        line = gr.HTML(status("Ready."), padding=False, elem_id="compare-status")
        problem = problem_place("compare")
    with gr.Column(elem_classes="show"):
        grid = gr.Image(
            label="Comparison",
            show_label=False,
            placeholder="The grid appears here.",
            format="png",
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="compare-grid",
        )
        download = gr.DownloadButton("Download the grid", size="sm", elem_id="compare-download")
    with gr.Column(elem_classes="tune"):
        mixer_ = mixer(services, tab, "compare", prompt)
        with gr.Accordion("Settings", open=False, elem_id="compare-settings"):
            seed = seed_box("compare")
            sampling_ = sampling(services, "compare")
    return _Parts(
        prompt=prompt,
        x=x,
        y=y,
        go=go,
        halt=halt,
        line=line,
        problem=problem,
        grid=grid,
        download=download,
        mixer=mixer_,
        seed=seed,
        sampling=sampling_,
    )


def _wire_drawing(services: Services, parts: _Parts) -> None:
    def draw(
        prompt: str,
        negative_prompt: str,
        adapters: dict[str, float],
        steps: float,
        guidance_scale: float,
        width: float,
        height: float,
        scheduler: str,
        seed: float,
        x_kind: str,
        x_values: str,
        y_kind: str,
        y_values: str,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw a grid. Kinds are nothing, adapter, strength, prompt, seed, guidance and steps."""
        settings = picture_settings(
            prompt,
            negative_prompt,
            adapters,
            steps,
            guidance_scale,
            width,
            height,
            scheduler,
            seed,
        )
        with at_field("x-values"):
            x = parse_axis(x_kind, x_values)
        with at_field("y-values"):
            y = parse_axis(y_kind, y_values)
        services.album.make_room(grid_pixels(x, y, services.limits))
        yield gr.skip(), None, status("Getting ready …")
        picture = None
        for progress in compare(services.generator, settings, x, y, services.limits):
            picture = progress.grid or picture
            yield (
                progress.grid or gr.skip(),
                gr.skip(),
                status(
                    f"{progress.done} of {progress.total} pictures, "
                    f"step {progress.step} of {progress.steps}",
                    progress.done,
                    progress.total,
                ),
            )
        assert picture is not None
        path = save_picture(services.album.folder / "grids", picture, settings)
        done = status(f"Done: {progress.total} pictures.")
        yield str(path), str(path), done

    # Before the drawing, for the browser works them off in this order.
    waiting = said("Waiting for its turn …")
    parts.go.click(None, None, parts.line, js=waiting, api_visibility="private")
    asked = [
        parts.prompt,
        parts.sampling.negative_prompt,
        parts.mixer.strengths,
        *parts.sampling.numbers,
        parts.seed,
        parts.x.kind,
        parts.x.values,
        parts.y.kind,
        parts.y.values,
    ]
    given = [parts.grid, parts.download, parts.line]
    options: dict[str, Any] = {
        "show_progress": "hidden",  # the status line says more
        "concurrency_limit": concurrent_drawings(services.limits),
        "concurrency_id": "pictures",
    }
    running = explaining(
        parts.go.click, draw, asked, given, parts.problem, line=parts.line, **options
    )
    gr.Button(visible=False).click(for_programs(draw), asked, given, api_name="compare", **options)
    watch(running, parts.halt, parts.line)
    parts.grid.change(
        None,
        [parts.prompt, parts.x.kind, parts.x.values, parts.y.kind, parts.y.values],
        None,
        js=_IN_WORDS,
        api_visibility="private",
    )


def _wire_suggestions(parts: _Parts) -> None:
    # In the browser, so that no late suggestion takes the place of what a visitor writes.
    suggest = f"""(kind, {{names}}) => ({{
      __type__: "update",
      value: {json.dumps(_SUGGESTIONS)}[kind] ?? [{json.dumps(BASE_MODEL)}, ...names].join(", "),
      info: {json.dumps(_HINTS)}[kind],
      visible: kind !== {json.dumps(AxisKind.NONE)},
    }})"""
    for axis in (parts.x, parts.y):
        axis.kind.change(
            None,
            [axis.kind, parts.mixer.choice.news],
            axis.values,
            js=suggest,
            api_visibility="private",
        )


def _axis_fields(axis: str, label: str, kind: AxisKind) -> _AxisFields:
    with gr.Column(min_width=150):
        kind_ = gr.Dropdown(
            [(kind.value.capitalize(), kind.value) for kind in AxisKind],
            value=kind.value,
            label=label,
            info="What varies.",
            elem_id=f"compare-{axis}-kind",
        )
        values_ = gr.Textbox(
            _SUGGESTIONS[kind],
            lines=2,
            label=f"{label}: values",
            info=_HINTS[kind],
            elem_id=f"compare-{axis}-values",
        )
    return _AxisFields(kind_, values_)
