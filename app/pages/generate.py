"""The Generate page: a prompt, adapters with strengths, and pictures that form as one watches."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.errors import SettingError
from app.generation import Picture, Progress, Waiting, concurrent_drawings
from app.library import SUFFIX
from app.pages.controls import (
    PLAIN_PROMPT,
    SAMPLE_ADAPTER,
    SAMPLE_PROMPT,
    Mixer,
    Sampling,
    mixer,
    mixer_values,
    picture_settings,
    prompt_box,
    sampling,
    seed_box,
)
from app.pages.messages import drawing, plain_errors, said, status, watch
from app.picture import PictureSettings, variations, whole
from app.png_metadata import read_settings, save_picture
from app.services import Services

EXAMPLES: tuple[tuple[str, list[str]], ...] = (
    (SAMPLE_PROMPT, [SAMPLE_ADAPTER]),
    ("a photo of sks car in the snow", [SAMPLE_ADAPTER]),
    (PLAIN_PROMPT, []),
    ("a cartoon of a cat in the jungle", []),
    ("a 3d render of a robot in the city", []),
    ("a flat drawing of a red mushroom on grass", []),
)
"""Prompts that work on the embedded base model, with the adapters they need."""

_HISTORY = 60
"""Pictures of a session that stay in view."""

_RANDOM_SEEDS = 10**6
"""Seeds are drawn below this: enough of them, and short enough to note down."""

Tile = tuple[str, str]
"""A picture's path and its caption."""


@dataclass(frozen=True)
class _Parts:
    """The components of the page that do something."""

    prompt: gr.Textbox
    go: gr.Button
    halt: gr.Button
    line: gr.HTML
    result: gr.Gallery
    reuse_seed: gr.Button
    reuse: gr.Button
    history: gr.Gallery
    mixer: Mixer
    added: gr.UploadButton
    seed: gr.Number
    new_seed: gr.Checkbox
    count: gr.Slider
    sampling: Sampling
    dropped: gr.File
    earlier: gr.State


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row(elem_classes="studio"):
        parts = _lay_out(services, tab)
    _wire_drawing(services, parts)
    _wire_restoring(services, parts)
    _wire_adding(services, parts)


def _lay_out(services: Services, tab: gr.Tab) -> _Parts:
    with gr.Column(elem_classes="ask"):
        prompt = prompt_box(services, "generate")
        with gr.Row():
            go = gr.Button("Generate", variant="primary", scale=3, elem_id="generate-go")
            halt = gr.Button("Stop", scale=1, min_width=80, elem_id="generate-stop")
        line = gr.HTML(status("Ready."), padding=False, elem_id="generate-status")
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
        history = gr.Gallery(
            label="This session; click a picture to choose it",
            format="png",
            columns=6,
            fit_columns=False,
            height="auto",
            allow_preview=False,
            interactive=False,
            elem_id="generate-history",
            elem_classes="compact",
        )
    with gr.Column(elem_classes="tune"):
        examples = gr.Column()  # stands above the mixer, whose choice it sets
        mixer_ = mixer(services, tab, "generate")
        with examples:
            _build_examples(services, prompt, mixer_.names)
        added = gr.UploadButton(
            "Add an adapter file …", file_types=[SUFFIX], size="sm", elem_id="generate-add-adapter"
        )
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
    return _Parts(
        prompt=prompt,
        go=go,
        halt=halt,
        line=line,
        result=result,
        reuse_seed=reuse_seed,
        reuse=reuse,
        history=history,
        mixer=mixer_,
        added=added,
        seed=seed,
        new_seed=new_seed,
        count=count,
        sampling=sampling_,
        dropped=dropped,
        earlier=gr.State([]),
    )


def _wire_drawing(services: Services, parts: _Parts) -> None:
    def generate(
        prompt: str,
        negative_prompt: str,
        adapters: dict[str, float],
        steps: float,
        guidance_scale: float,
        width: float,
        height: float,
        scheduler: str,
        seed: float,
        new_seed: bool,
        count: float,
        earlier: list[Tile],
    ) -> Iterator[tuple[Any, ...]]:
        """Draw pictures. `adapters` gives strengths by name, such as {"blue_car": 1.0}."""
        with plain_errors():
            settings = picture_settings(
                prompt,
                negative_prompt,
                adapters,
                steps,
                guidance_scale,
                width,
                height,
                scheduler,
                secrets.randbelow(_RANDOM_SEEDS) if new_seed else seed,
            )
            wanted = variations(settings, whole(count), services.limits)
            tiles: list[Tile] = []
            for event in services.generator.run(wanted):
                match event:
                    case Waiting():
                        yield (gr.skip(),) * 4
                    case Progress():
                        shown = list(event.previews) or gr.skip()
                        yield shown, drawing(event), gr.skip(), gr.skip()
                    case Picture():
                        path = save_picture(services.settings.pictures, event.image, event.settings)
                        tiles.append((str(path), caption(event.settings)))
            earlier = [*reversed(tiles), *earlier][:_HISTORY]
            yield tiles, status(f"Done. Seed {settings.seed}."), settings.seed, earlier

    starts = [parts.go.click, parts.prompt.submit]
    # Before the drawing, for the browser works them off in this order.
    waiting = said("Waiting for its turn …")
    gr.on(starts, None, None, parts.line, js=waiting, api_visibility="private")
    running = gr.on(
        starts,
        generate,
        [
            parts.prompt,
            parts.sampling.negative_prompt,
            parts.mixer.strengths,
            *parts.sampling.numbers,
            parts.seed,
            parts.new_seed,
            parts.count,
            parts.earlier,
        ],
        [parts.result, parts.line, parts.seed, parts.earlier],
        api_name="generate",
        show_progress="hidden",  # the status line says more
        concurrency_limit=concurrent_drawings(services.limits),
        concurrency_id="pictures",
    )
    watch(running, parts.halt, parts.line)
    running.success(
        lambda earlier: [path for path, _ in earlier],
        parts.earlier,
        parts.history,
        queue=False,
        api_visibility="private",
    )


def _wire_restoring(services: Services, parts: _Parts) -> None:
    def restore(path: str | None) -> tuple[Any, ...]:
        with plain_errors():
            if path is None:
                raise SettingError("Choose a picture first.")
            settings = read_settings(Path(path), services.limits)
        missing = sorted(set(settings.adapters) - set(services.library.names()))
        note = f" Not here: {', '.join(missing)}." if missing else ""
        return (
            settings.prompt,
            settings.negative_prompt,
            settings.steps,
            settings.guidance_scale,
            settings.width,
            settings.height,
            settings.scheduler,
            settings.seed,
            False,
            status(f"Settings restored, seed {settings.seed}.{note}"),
            *mixer_values(services, settings.adapters),
        )

    def choose(event: gr.SelectData, earlier: list[Tile]) -> tuple[str, str]:
        with plain_errors():
            path, text = earlier[event.index]
        return path, status(f"Chosen: {text}.")

    def keep_seed(seed: int) -> tuple[bool, str]:
        return False, status(f"Seed {seed} stays; the switch for new ones is in Settings.")

    form = [
        parts.prompt,
        parts.sampling.negative_prompt,
        *parts.sampling.numbers,
        parts.seed,
        parts.new_seed,
        parts.line,
        *parts.mixer.components,
    ]
    chosen = gr.State(None)
    parts.history.select(
        choose, parts.earlier, [chosen, parts.line], queue=False, api_visibility="private"
    )
    parts.reuse.click(restore, chosen, form, api_visibility="private")
    parts.dropped.upload(restore, parts.dropped, form, api_visibility="private")
    parts.reuse_seed.click(
        keep_seed, parts.seed, [parts.new_seed, parts.line], queue=False, api_visibility="private"
    )


def _wire_adding(services: Services, parts: _Parts) -> None:
    def add(path: str, chosen: list[str]) -> tuple[gr.Dropdown, str]:
        with plain_errors():
            name = services.library.add(Path(path))
        choices = gr.Dropdown(services.library.names(), value=[*chosen, name])
        return choices, status(f"Added “{name}”.")

    names = parts.mixer.names
    parts.added.upload(add, [parts.added, names], [names, parts.line], api_visibility="private")


def caption(settings: PictureSettings) -> str:
    """What to write under a picture: its seed, and its adapters if it has any."""
    adapters = (f"{name} × {strength:g}" for name, strength in settings.adapters.items())
    return " · ".join((f"seed {settings.seed}", *adapters))


def _build_examples(services: Services, prompt: gr.Textbox, names: gr.Dropdown) -> None:
    present = set(services.library.names())
    usable = [[text, adapters] for text, adapters in EXAMPLES if present.issuperset(adapters)]
    gr.Examples(
        usable,
        [prompt, names],
        example_labels=[str(text) for text, _ in usable],
        label="Try",
        api_visibility="private",
        elem_id="generate-examples",
    )
