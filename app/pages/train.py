"""The Train page: photos, a few settings, and a training that one can watch, leave and find again.

What is shown of a training is asked of `TrainingJobs` again and again, so it makes no difference
which page started it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..photos import CroppedPhoto
from ..plots import to_svg, training_curves
from ..services import Services
from ..training_status import Stage, TrainingStatus
from .adapter_choice import news
from .messages import plain_errors, status
from .photo_drop import photo_drop
from .training_form import build_form
from .your_adapters import your_adapters

_POLL_SECONDS = 1.0


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            if services.base.untrainable is not None:
                gr.HTML(
                    status(f"Nothing can be trained here: {services.base.untrainable}."),
                    elem_id="train-status",
                )
                your_adapters(services, tab)
                return
            photos_ = photo_drop(services.limits)
            form = build_form(services)
            with gr.Row():
                go = gr.Button(
                    "Train", variant="primary", scale=2, min_width=120, elem_id="train-go"
                )
                halt = gr.Button(
                    "Stop and keep", interactive=False, min_width=160, elem_id="train-stop"
                )
        with gr.Column(scale=6, min_width=320):
            view = _build_view()
            choice = your_adapters(services, tab)

    def show(seen: dict[str, Any] | None) -> tuple[Any, ...]:
        """What has changed since what the browser says it has `seen`."""
        now = services.jobs.status()
        seen = seen or {}
        before = seen if now and seen.get("run") == now.run else {}
        if now is None or before.get("revision") == now.revision:
            return (gr.skip(),) * 8
        samples = len(now.samples)
        last: str | None = seen.get("adapter")
        trained = now.adapter_name if now.kept and now.adapter_name != last else None
        return (
            {
                "run": now.run,
                "revision": now.revision,
                "samples": samples,
                "adapter": trained or last,
            },
            _line(now),
            _curves(now.losses, now.drifts, now.total_steps) if now.step else "",
            gr.skip() if before.get("samples") == samples else _samples(now),
            gr.skip() if before else gr.update(value=list(now.photos), visible=True),
            gr.update(interactive=not now.stage.is_over),
            # Chosen, unless the visitor has chosen another than the last.
            *(
                news(services, offered=trained, instead={last: trained} if last else None)
                if trained
                else (gr.skip(),) * 2
            ),
        )

    def start(values: dict[Component, Any]) -> None:
        with plain_errors():
            photos: list[CroppedPhoto] = values[photos_]
            config = form.config(values)
            services.jobs.start(values[form.name], [photo.square() for photo in photos], config)

    def stop() -> None:
        services.jobs.stop()
        gr.Info("The training stops after this step and keeps what it has learned.")

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    go.click(start, {photos_, *form.components}, None, **private)
    halt.click(stop, None, None, queue=False, **private)
    # One tick at a time writes what is watched, and nothing else does, so that no late answer takes
    # the place of a newer one. What was seen is kept in the browser: a phone that sleeps misses
    # answers, and is to ask again.
    seen_ = gr.JSON(visible=False)
    gr.Timer(_POLL_SECONDS).tick(
        show,
        seen_,
        [seen_, *view.components, halt, *choice.components],
        queue=False,
        trigger_mode="once",
        **private,
    )


@dataclass(frozen=True)
class _View:
    """Where a training is watched."""

    line: gr.HTML
    curves: gr.HTML
    samples: gr.Gallery
    photos: gr.Gallery

    @property
    def components(self) -> list[Component]:
        """All parts."""
        return list(vars(self).values())


def _build_view() -> _View:
    return _View(
        line=gr.HTML(
            status("Nothing is being trained. A training goes on when you leave this page."),
            elem_id="train-status",
        ),
        curves=gr.HTML(elem_id="train-curves"),
        samples=gr.Gallery(
            label="The prompt you watch, by step",
            format="png",
            columns=4,
            height="auto",
            interactive=False,
            visible=False,
            elem_id="train-samples",
            elem_classes="compact",
        ),
        photos=gr.Gallery(
            label="Learning from",
            format="png",
            columns=8,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=False,
            elem_id="train-learned-photos",
            elem_classes="compact",
        ),
    )


def _line(now: TrainingStatus) -> str:
    if now.stage.is_over:
        return status(now.message)
    name = f"“{now.adapter_name}”"
    if now.stage is not Stage.TRAINING or not now.step:
        return status(f"{name}: {now.message}", now.step, now.total_steps)
    left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
    return status(f"{name}: step {now.step} of {now.total_steps}{left}", now.step, now.total_steps)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def _samples(now: TrainingStatus) -> Any:
    """The pictures with captions, the newest first."""
    tiles = [
        (image, str(sample.step) if sample.step else "base")
        for sample in reversed(now.samples)
        for image in sample.images
    ]
    return gr.update(value=tiles, visible=bool(tiles))


@functools.lru_cache(maxsize=2)  # every page that watches asks for the same
def _curves(losses: tuple[float, ...], drifts: tuple[float, ...], total_steps: int) -> str:
    description = (
        f"Loss and drift of the singular values over {len(losses)} of {total_steps} steps: the "
        f"drift has come to {drifts[-1]:.1%}."
    )
    return to_svg(training_curves(losses, drifts, total_steps), description)
