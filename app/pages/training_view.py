"""Where a training is watched: what goes on, its curves, its pictures by step."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..plots import to_svg, training_curves
from ..services import Services
from ..training_status import Stage, TrainingStatus
from .messages import status
from .problems import explaining, problem_place
from .sample_rows import rows, step_name

IDLE = "Nothing is being trained. A training goes on when you leave this page."


@dataclass(frozen=True)
class TrainingView:
    """The components of a training's view.

    Attributes:
        curves: loss and drift.
        rows: all pictures, by step.
        step: which of them to see large.
        large: those of that step.
        keep: saves the adapter of that step.
        kept: says so.
        photos: what is learned from.
        seen: out of sight, what the browser has been told: the `run`, its `revision`, and so on.
    """

    curves: gr.HTML
    rows: gr.HTML
    step: gr.Slider
    large: gr.Gallery
    keep: gr.Button
    kept: gr.HTML
    photos: gr.Gallery
    seen: gr.JSON

    @property
    def components(self) -> list[Component]:
        """What `news` may set."""
        return [self.curves, self.rows, self.step, self.large, self.keep, self.photos]

    def news(self, now: TrainingStatus, seen: dict[str, Any], step: float) -> dict[Component, Any]:
        """What has changed since what the browser has `seen`, with its slider at `step`."""
        is_new = seen.get("run") != now.run
        news: dict[Component, Any] = {}
        if now.step or is_new:
            news[self.curves] = _curves(now.losses, now.drifts, now.total_steps) if now.step else ""
        if is_new:
            news[self.photos] = gr.update(value=list(now.photos), visible=True)
        if is_new or seen.get("samples") != len(now.samples):
            follows = is_new or step >= seen.get("last_step", 0)
            news |= self._samples(now, now.total_steps if follows else step)
        return news

    def _samples(self, now: TrainingStatus, step: float) -> dict[Component, Any]:
        steps = [sample.step for sample in now.samples]
        choice = gr.update(
            maximum=max(steps, default=1) or 1,
            step=now.config.validation_steps,
            value=min(step, max(steps, default=0)),
            visible=len(steps) > 1,
        )
        return {
            self.rows: rows(now.config.validation_prompt, now.samples),
            self.step: choice,
            self.keep: gr.update(visible=len(steps) > 1),
            self.large: large(now, step),
        }


def build_view(services: Services) -> TrainingView:
    """Build the view, empty, and let its slider and its button work."""
    rows_ = gr.HTML(elem_id="train-rows")
    step = gr.Slider(
        0,
        1,
        value=0,
        step=1,
        label="Step to look at",
        info="The same seeds at every step: how your subject came about.",
        visible=False,
        interactive=True,
        elem_id="train-step",
    )
    large_ = gr.Gallery(
        label="The prompts you watch",
        format="png",
        columns=2,
        height="auto",
        interactive=False,
        visible=False,
        elem_id="train-samples",
        elem_classes="compact",
    )
    keep = gr.Button(
        "Save the adapter of this step", size="sm", visible=False, elem_id="train-keep"
    )
    kept = gr.HTML(padding=False, elem_id="train-kept")
    problem = problem_place("train", "keep-problem")
    curves = gr.HTML(elem_id="train-curves")
    photos = gr.Gallery(
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
    )
    seen = gr.JSON(visible=False)
    view = TrainingView(curves, rows_, step, large_, keep, kept, photos, seen)

    def look(step: float, seen: dict[str, Any] | None) -> Any:
        now = services.jobs.status((seen or {}).get("run"))
        return large(now, step) if now else gr.skip()

    def save(step: float, seen: dict[str, Any] | None) -> str:
        name = services.jobs.keep_step((seen or {}).get("run", ""), int(step))
        return status(f"Saved as “{name}”.")

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    explaining(step.input, look, [step, seen], large_, problem, trigger_mode="always_last", **quick)
    explaining(keep.click, save, [step, seen], kept, problem, **quick)
    return view


def large(now: TrainingStatus, step: float) -> Any:
    """The pictures of a step, with captions."""
    sample = now.sample(step)
    if sample is None:
        return gr.update(value=[], visible=False)
    tiles = [
        (image, f"{step_name(sample.step)}: {prompt}")
        for prompt, images in zip(now.config.validation_prompt, sample.images, strict=True)
        for image in images
    ]
    return gr.update(value=tiles, visible=True)


def line(now: TrainingStatus) -> str:
    """The status line of a training."""
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


@functools.lru_cache(maxsize=2)  # every page that watches asks for the same
def _curves(losses: tuple[float, ...], drifts: tuple[float, ...], total_steps: int) -> str:
    description = (
        f"Loss and drift of the singular values over {len(losses)} of {total_steps} steps: the "
        f"drift has come to {drifts[-1]:.1%}."
    )
    return to_svg(training_curves(losses, drifts, total_steps), description)
