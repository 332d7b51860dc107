"""The Generate page: a prompt, adapters with strengths, and pictures that form as one watches."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import SettingError
from ..generation import concurrent_drawings
from ..picture import variations, whole
from ..png_metadata import read_settings
from ..services import Services
from ..visits import Picture, Progress, Waiting
from .adapter_choice import news
from .captions import caption
from .controls import mixer_values, picture_settings
from .generate_parts import GenerateParts, lay_out
from .messages import drawing, for_programs, said, status, watch
from .problems import EACH_CHOICE, explaining

_HISTORY = 60
"""Pictures of a session that stay in view."""

_RANDOM_SEEDS = 10**6
"""Seeds are drawn below this: enough of them, and short enough to note down."""

_SEED_STAYS = status("Seed … stays; the switch for new ones is in Settings.")

Tile = tuple[str, str]
"""A picture's path and its caption."""


def build(services: Services, tab: gr.Tab) -> GenerateParts:
    """Build the page inside the current tab."""
    with gr.Row(elem_classes="studio"):
        parts = lay_out(services, tab)
    _wire_drawing(services, parts)
    _wire_seeds(parts)
    _wire_restoring(services, parts)
    _wire_adding(services, parts)
    return parts


def _wire_drawing(services: Services, parts: GenerateParts) -> None:
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
        """Draw pictures. `adapters` gives strengths by name, such as {"flow_blue_clock": 1.0}."""
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
        gone = services.album.make_room(sum(one.width * one.height for one in wanted))
        tiles: list[Tile] = []
        for event in services.generator.run(wanted):
            match event:
                case Waiting():
                    yield (gr.skip(),) * 4
                case Progress():
                    shown = list(event.previews) or gr.skip()
                    yield shown, drawing(event), gr.skip(), gr.skip()
                case Picture():
                    path = services.album.keep(event.image, event.settings)
                    tiles.append((str(path), caption(event.settings)))
        earlier = [*reversed(tiles), *earlier][:_HISTORY]
        done = status(f"Done. Seed {settings.seed}.{_room_made(gone)}")
        yield tiles, done, settings.seed, earlier

    def generate_here(*values: Any) -> Iterator[tuple[Any, ...]]:
        """As `generate`, but a visit begins with the seed in the field, which comes out well."""
        *chosen, new_seed, count, earlier = values
        yield from generate(*[*chosen, new_seed and bool(earlier), count, earlier])

    starts = [parts.go.click, parts.prompt.submit]
    # Before the drawing, for the browser works them off in this order.
    waiting = said("Waiting for its turn …")
    gr.on(starts, None, None, parts.line, js=waiting, api_visibility="private")
    asked = [
        parts.prompt,
        parts.sampling.negative_prompt,
        parts.mixer.strengths,
        *parts.sampling.numbers,
        parts.seed,
        parts.new_seed,
        parts.count,
        parts.earlier,
    ]
    given = [parts.result, parts.line, parts.drawn_seed, parts.earlier]
    options: dict[str, Any] = {
        "show_progress": "hidden",  # the status line says more
        "concurrency_limit": concurrent_drawings(services.limits),
        "concurrency_id": "pictures",
    }
    running = explaining(
        functools.partial(gr.on, starts),
        generate_here,
        asked,
        given,
        parts.problem,
        line=parts.line,
        **options,
    )
    gr.Button(visible=False).click(
        for_programs(generate), asked, given, api_name="generate", **options
    )
    watch(running, parts.halt, parts.line)
    running.success(
        lambda earlier: earlier,
        parts.earlier,
        parts.history,
        queue=False,
        api_visibility="private",
    )


def _wire_restoring(services: Services, parts: GenerateParts) -> None:
    def restore(path: str | None) -> tuple[Any, ...]:
        if path is None:
            raise SettingError("Choose a picture first.")
        settings = services.base.drawing.adapted(read_settings(Path(path), services.limits))
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
        path, text = earlier[event.index]
        return path, status(f"Chosen: {text}.")

    form = [
        parts.prompt,
        parts.sampling.negative_prompt,
        *parts.sampling.numbers,
        parts.seed,
        parts.new_seed,
        parts.line,
        *parts.mixer.components,
    ]
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    place = parts.history_problem
    picked = [parts.chosen, parts.line]
    explaining(parts.history.select, choose, parts.earlier, picked, place, **EACH_CHOICE, **quick)
    for restored in (
        explaining(parts.reuse.click, restore, parts.chosen, form, place, **quick),
        explaining(
            parts.dropped.upload, restore, parts.dropped, form, parts.dropped_problem, **quick
        ),
    ):
        parts.mixer.show_sliders(restored.success)


def _wire_seeds(parts: GenerateParts) -> None:
    # In the browser, for a seed that a visitor gives while a picture is drawn stays.
    private: dict[str, Any] = {"api_visibility": "private"}
    parts.drawn_seed.change(
        None,
        [parts.drawn_seed, parts.seed, parts.new_seed],
        parts.seed,
        js="(drawn, seed, renewed) => renewed ? drawn : seed",
        **private,
    )
    parts.reuse_seed.click(
        None,
        [parts.drawn_seed, parts.seed],
        [parts.seed, parts.new_seed, parts.line],
        js=f"(drawn, seed) => [drawn ?? seed, false, {json.dumps(_SEED_STAYS)}"
        ".replace('…', drawn ?? seed)]",
        **private,
    )


def _wire_adding(services: Services, parts: GenerateParts) -> None:
    def add(path: str) -> tuple[Any, Any, str]:
        name = services.library.add(Path(path))
        return *news(services, offered=name), status(f"Added “{name}”.")

    explaining(
        parts.added.upload,
        add,
        parts.added,
        [*parts.mixer.choice.components, parts.line],
        parts.added_problem,
        show_progress_on=parts.line,  # it would cover the adapters
    )


def _room_made(gone: int) -> str:
    """What there is to say of pictures that had to go."""
    if not gone:
        return ""
    oldest = "oldest picture" if gone == 1 else f"{gone} oldest pictures"
    return f" Your album was full: its {oldest}, favourites apart, made room."
