"""The Generate page: a prompt, adapters with strengths, and pictures that form as one watches."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app.generation import Picture, Progress, Waiting
from app.library import SUFFIX
from app.pages.controls import (
    SAMPLE_ADAPTER,
    SAMPLE_PROMPT,
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
    ("a photo of a teapot on a wooden floor", []),
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


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row(elem_classes="studio"):
        with gr.Column(elem_classes="ask"):
            prompt_ = prompt_box("generate")
            with gr.Row(elem_classes="actions"):
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
            with gr.Row(elem_classes="actions"):
                reuse_seed = gr.Button(
                    "Reuse the last seed", size="sm", elem_id="generate-reuse-seed"
                )
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
            examples = gr.Column()
            mixer_ = mixer(services, tab, "generate")
            with examples:
                _build_examples(services, prompt_, mixer_.names)
            added = gr.UploadButton(
                "Add an adapter file …",
                file_types=[SUFFIX],
                size="sm",
                elem_id="generate-add-adapter",
            )
            with gr.Accordion("Settings", open=False, elem_id="generate-settings"):
                with gr.Row():
                    seed_ = seed_box("generate")
                    new_seed_ = gr.Checkbox(
                        True,
                        label="A new seed every time",
                        info="Off: the seed in the field is used again.",
                        elem_id="generate-new-seed",
                    )
                count_ = gr.Slider(
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
    earlier_ = gr.State([])
    chosen_ = gr.State(None)

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

    gr.on(
        [go.click, prompt_.submit],
        None,
        None,
        line,
        js=said("Waiting for its turn …"),
        api_visibility="private",
    )
    running = gr.on(
        [go.click, prompt_.submit],
        generate,
        [
            prompt_,
            sampling_.negative_prompt,
            mixer_.strengths,
            *sampling_.numbers,
            seed_,
            new_seed_,
            count_,
            earlier_,
        ],
        [result, line, seed_, earlier_],
        api_name="generate",
        show_progress="hidden",  # the status line says more
        concurrency_limit=1,
        concurrency_id="pictures",
    )
    watch(running, halt, line)
    running.success(
        lambda earlier: [path for path, _ in earlier],
        earlier_,
        history,
        queue=False,
        api_visibility="private",
    )
    reuse_seed.click(
        lambda seed: (False, status(f"Seed {seed} stays; the switch for new ones is in Settings.")),
        seed_,
        [new_seed_, line],
        queue=False,
        api_visibility="private",
    )

    def restored(path: str | None) -> tuple[Any, ...]:
        with plain_errors():
            if path is None:
                raise gr.Error("Choose a picture first.", title="That did not work")
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

    form = [
        prompt_,
        sampling_.negative_prompt,
        *sampling_.numbers,
        seed_,
        new_seed_,
        line,
        *mixer_.components,
    ]
    dropped.upload(restored, dropped, form, api_visibility="private")
    reuse.click(restored, chosen_, form, api_visibility="private")

    def choose(event: gr.SelectData, earlier: list[Tile]) -> tuple[str, str]:
        with plain_errors():
            path, text = earlier[event.index]
        return path, status(f"Chosen: {text}.")

    def add(path: str, chosen: list[str]) -> tuple[gr.Dropdown, str]:
        with plain_errors():
            name = services.library.add(Path(path))
        choices = gr.Dropdown(services.library.names(), value=[*chosen, name])
        return choices, status(f"Added “{name}”.")

    added.upload(add, [added, mixer_.names], [mixer_.names, line], api_visibility="private")
    history.select(choose, earlier_, [chosen_, line], queue=False, api_visibility="private")


def caption(settings: PictureSettings) -> str:
    """What to write under a picture: its seed, and its adapters if it has any."""
    adapters = (f"{name} × {strength:g}" for name, strength in settings.adapters.items())
    return " · ".join((f"seed {settings.seed}", *adapters))


def _build_examples(services: Services, prompt_: gr.Textbox, names: gr.Dropdown) -> None:
    present = set(services.library.names())
    usable = [[prompt, adapters] for prompt, adapters in EXAMPLES if present.issuperset(adapters)]
    gr.Examples(
        usable,
        [prompt_, names],
        example_labels=[str(prompt) for prompt, _ in usable],
        label="Try",
        api_visibility="private",
        elem_id="generate-examples",
    )
