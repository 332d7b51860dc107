"""What there is on the Generate page, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ..library import SUFFIX
from ..services import Services
from .album_section import build_album
from .controls import (
    Mixer,
    Sampling,
    mixer,
    prompt_box,
    sampling,
    seed_box,
    small_pictures,
)
from .messages import status
from .problems import problem_place


@dataclass(frozen=True)
class GenerateParts:
    """The components of the page that do something."""

    prompt: gr.Textbox
    go: gr.Button
    halt: gr.Button
    line: gr.HTML
    problem: gr.HTML
    result: gr.Gallery
    reuse_seed: gr.Button
    reuse: gr.Button
    history: gr.Gallery
    history_problem: gr.HTML
    mixer: Mixer
    added: gr.UploadButton
    added_problem: gr.HTML
    seed: gr.Number
    drawn_seed: gr.Number
    new_seed: gr.Checkbox
    count: gr.Slider
    sampling: Sampling
    dropped: gr.File
    dropped_problem: gr.HTML
    earlier: gr.State
    chosen: gr.State


def lay_out(services: Services, tab: gr.Tab) -> GenerateParts:
    """Build the three blocks of the page: what to draw, what was drawn, and the fine print."""
    with gr.Column(elem_classes="ask"):
        prompt = prompt_box(services, "generate")
        with gr.Row():
            go = gr.Button("Generate", variant="primary", scale=3, elem_id="generate-go")
            halt = gr.Button("Stop", scale=1, min_width=80, elem_id="generate-stop")
        line = gr.HTML(status("Ready."), padding=False, elem_id="generate-status")
        problem = problem_place("generate")
    with gr.Column(elem_classes="show"):
        result = gr.Gallery(
            label="Picture",
            format="png",
            columns=1,
            object_fit="contain",
            fit_columns=False,
            interactive=False,
            elem_id="generate-result",
        )
        with gr.Row():
            reuse_seed = gr.Button("Reuse the last seed", size="sm", elem_id="generate-reuse-seed")
            reuse = gr.Button(
                "Use the chosen picture's settings", size="sm", elem_id="generate-reuse"
            )
        history_problem = problem_place("generate", "history-problem")
        history = small_pictures("This session; click a picture to choose it", "generate-history")
        chosen = gr.State(None)
        build_album(services, chosen, line)
    with gr.Column(elem_classes="tune"):
        examples = gr.Column()  # stands above the mixer, whose choice it sets
        mixer_ = mixer(services, tab, "generate", prompt)
        with examples:
            _build_examples(services, prompt, mixer_.choice.field)
        added = gr.UploadButton(
            "Add an adapter file …", file_types=[SUFFIX], size="sm", elem_id="generate-add-adapter"
        )
        added_problem = problem_place("generate", "added-problem")
        with gr.Accordion("Settings", open=False, elem_id="generate-settings"):
            with gr.Row():
                seed = seed_box("generate")
                new_seed = gr.Checkbox(
                    True,
                    label="A new seed every time",
                    info="Off: the seed in the field is used again.",
                    elem_id="generate-new-seed",
                )
            count = gr.Slider(
                1,
                services.limits.max_images,
                value=1,
                step=1,
                label="Pictures",
                info="How many to draw together, from consecutive seeds.",
                elem_id="generate-count",
            )
            sampling_ = sampling(services, "generate")
        dropped = gr.File(
            label="Drop a picture to restore its settings",
            file_types=[".png"],
            height=120,
            elem_id="generate-restore",
        )
        dropped_problem = problem_place("generate", "dropped-problem")
    return GenerateParts(
        prompt=prompt,
        go=go,
        halt=halt,
        line=line,
        problem=problem,
        result=result,
        reuse_seed=reuse_seed,
        reuse=reuse,
        history=history,
        history_problem=history_problem,
        mixer=mixer_,
        added=added,
        added_problem=added_problem,
        seed=seed,
        drawn_seed=gr.Number(label="Seed", precision=0, visible=False),
        new_seed=new_seed,
        count=count,
        sampling=sampling_,
        dropped=dropped,
        dropped_problem=dropped_problem,
        earlier=gr.State([]),
        chosen=chosen,
    )


def _build_examples(services: Services, prompt: gr.Textbox, names: gr.Dropdown) -> None:
    examples = services.examples()
    gr.Examples(
        [[example.prompt, example.adapters] for example in examples],
        [prompt, names],
        example_labels=[example.prompt for example in examples],
        label="Try",
        api_visibility="private",
        elem_id="generate-examples",
    )
