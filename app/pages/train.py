"""The Train page: photos, a few settings, and a training that one can watch, leave and find again.

What is shown of a training is asked of `TrainingJobs` again and again, so it makes no difference
which page started it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..own_words import check_captions
from ..presets import PRESETS
from ..services import Services
from ..training_choices import TrainingChoices, choices_of
from .adapter_choice import AdapterChoice, news
from .auto_captions import wire_captions
from .draft import Memory, keep_draft
from .messages import said, status
from .photo_drop import PhotoDrop, photo_drop
from .problems import explaining, problem_place
from .training_api import build_api
from .training_form import TrainingForm, build_form
from .training_queue import TrainingQueue, build_queue, waiting
from .training_view import IDLE, TrainingView, build_view, line
from .your_adapters import your_adapters

_POLL_SECONDS = 1.0

# Photos that have come since mend a lack of them. Else nothing is touched: what the page says may
# have changed since the event took its values.
_PHOTOS_CAME = f"""(problem, line) => problem.includes('data-field="drop"')
  ? ["", {json.dumps(status(IDLE))}]
  : [{{__type__: "update"}}, {{__type__: "update"}}]"""


@dataclass(frozen=True)
class _Actions:
    """What can be done with a training."""

    go: gr.Button
    halt: gr.Button
    line: gr.HTML
    try_it: gr.Button
    again: gr.Button


@dataclass(frozen=True)
class TrainPage:
    """What other pages and the app need of this one.

    Attributes:
        try_it: asks for pictures with what was trained last.
        seen: out of sight, which training the page shows: its `run`.
        restore: bring back what a visitor filled in before the page was loaded, given the load
            event of the app.
    """

    try_it: gr.Button
    seen: gr.JSON
    restore: list[Callable[[Callable[..., Any]], Any]]


def build(services: Services, tab: gr.Tab, memory: Memory) -> TrainPage | None:
    """Build the page inside the current tab; None where nothing can be trained."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            if services.base.untrainable is not None:
                gr.HTML(
                    status(f"Nothing can be trained here: {services.base.untrainable}."),
                    elem_id="train-status",
                )
                your_adapters(services, tab)
                return None
            dropped = photo_drop(services, memory.photos)
            form = build_form(services)
            actions = _build_actions()
            problem = problem_place("train")
            queue = build_queue(services)
        with gr.Column(scale=6, min_width=320):
            view = build_view(services)
            choice = your_adapters(services, tab)
    _wire_start(services, dropped, form, actions, problem)
    _wire_again(services, dropped, form, actions, view, problem)
    _wire_watching(services, actions, queue, view, choice)
    prompt = form.fields["instance_prompt"]
    wire_captions(services, dropped, prompt, actions.line, problem)
    build_api(services, dropped.drop, form)
    fields = [*form.components, form.preset]
    draft = keep_draft(fields, memory.form)
    return TrainPage(actions.try_it, view.seen, [draft, dropped.restore])


def _build_actions() -> _Actions:
    with gr.Row():
        go = gr.Button("Train", variant="primary", scale=2, min_width=120, elem_id="train-go")
        halt = gr.Button("Stop and keep", interactive=False, min_width=160, elem_id="train-stop")
    line_ = gr.HTML(status(IDLE), padding=False, elem_id="train-status")
    with gr.Row():
        try_it = gr.Button(
            "Try it now", variant="primary", size="sm", visible=False, elem_id="train-try"
        )
        again = gr.Button("Train again with these", size="sm", visible=False, elem_id="train-again")
    return _Actions(go, halt, line_, try_it, again)


def _wire_start(
    services: Services,
    dropped: PhotoDrop,
    form: TrainingForm,
    actions: _Actions,
    problem: gr.HTML,
) -> None:
    jobs, limits, base = services.jobs, services.limits, services.base

    def start(values: dict[Component, Any]) -> str:
        """Check what is asked for, in the order of the page, and begin or queue it."""
        photos = values[dropped.photos]
        choices = form.choices(values)
        jobs.check_photos(len(photos))
        choices.check_name()
        config = choices.config(limits, base)
        check_captions(config.train_identifier, [photo.caption for photo in photos])
        run = jobs.start(choices.name, photos, config)
        place = next((i for i, row in enumerate(jobs.waiting(), 1) if row.run == run), 0)
        if not place:
            return status("Training …")
        return status(f"“{choices.name.strip()}” waits for its turn, number {place} in the queue.")

    def stop() -> str:
        jobs.stop()
        return status("The training stops after this step and keeps what it has learned.")

    # Before the checks, for the browser works them off in this order.
    actions.go.click(None, None, actions.line, js=said("Training …"), api_visibility="private")
    explaining(
        actions.go.click,
        start,
        {dropped.photos, *form.components},
        actions.line,
        problem,
        line=actions.line,
        show_progress="hidden",
    )
    said_ = [problem, actions.line]
    dropped.tiles.change(None, said_, said_, js=_PHOTOS_CAME, api_visibility="private")
    explaining(
        actions.halt.click,
        stop,
        None,
        actions.line,
        problem,
        queue=False,
        show_progress="hidden",
    )


def _wire_again(
    services: Services,
    dropped: PhotoDrop,
    form: TrainingForm,
    actions: _Actions,
    view: TrainingView,
    problem: gr.HTML,
) -> None:
    def again(seen: dict[str, Any] | None) -> tuple[Any, ...]:
        """The form and the photos as they were for the training that is shown."""
        run = (seen or {}).get("run", "")
        now = services.jobs.status(run)
        assert now is not None  # the button is shown with it
        choices = choices_of(now.adapter_name, now.config)
        return (
            *form.filled(choices),
            _preset(choices),
            *dropped.show(list(services.jobs.photos(run))),
            status("The form is filled as it was; change what you like and train again."),
        )

    filled = [*form.components, form.preset, *dropped.shown, actions.line]
    explaining(
        actions.again.click,
        again,
        view.seen,
        filled,
        problem,
        line=actions.line,
        queue=False,
        show_progress="hidden",
    )


def _preset(choices: TrainingChoices) -> str | None:
    """The preset that these choices are, if they are one."""
    wanted = (choices.steps, choices.learning_rate, choices.prior_preservation)
    found = [
        name
        for name, p in PRESETS.items()
        if (p.steps, p.learning_rate, p.prior_preservation and not choices.own_word) == wanted
    ]
    return found[0] if found else None


def _wire_watching(
    services: Services,
    actions: _Actions,
    queue: TrainingQueue,
    view: TrainingView,
    choice: AdapterChoice,
) -> None:
    def show(seen: dict[str, Any] | None, step: float, chosen: str | None) -> dict[Any, Any]:
        """What has changed since what the browser says it has `seen`."""
        now, waits, seen = services.jobs.status(), waiting(services), seen or {}
        changes: dict[Any, Any] = {view.seen: gr.skip()}
        if seen.get("waiting", []) != waits:
            changes |= queue.news(waits, chosen)
            changes[view.seen] = seen = {**seen, "waiting": waits}
        if now is None or (seen.get("run"), seen.get("revision")) == (now.run, now.revision):
            return changes
        last: str | None = seen.get("adapter")
        trained = now.adapter_name if now.kept and now.adapter_name != last else None
        changes |= view.news(now, seen, step)
        changes[actions.line] = line(now)
        changes[actions.halt] = gr.update(interactive=not now.stage.is_over)
        changes[actions.again] = gr.update(visible=now.stage.is_over)
        changes[actions.try_it] = gr.update(visible=now.kept)
        if trained:
            # Chosen, unless the visitor has chosen another than the last.
            instead = {last: trained} if last else None
            told = news(services, offered=trained, instead=instead)
            changes |= dict(zip(choice.components, told, strict=True))
        changes[view.seen] = {
            "run": now.run,
            "revision": now.revision,
            "samples": len(now.samples),
            "last_step": now.samples[-1].step if now.samples else 0,
            "adapter": trained or last,
            "waiting": waits,
        }
        return changes

    # One tick at a time writes what is watched, and but for the answers to clicks nothing else
    # does, so that no late answer takes the place of a newer one. What was seen is kept in the
    # browser: a phone that sleeps misses answers, and is to ask again.
    gr.Timer(_POLL_SECONDS).tick(
        show,
        [view.seen, view.step, queue.choice],
        [
            view.seen,
            *view.components,
            *queue.components,
            *vars(actions).values(),
            *choice.components,
        ],
        queue=False,
        trigger_mode="once",
        show_progress="hidden",
        api_visibility="private",
    )
