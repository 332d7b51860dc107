"""The trainings that wait for their turn: by name, in order, each to be moved up or taken off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import SettingError
from ..services import Services
from .problems import explaining, problem_place


@dataclass(frozen=True)
class TrainingQueue:
    """The components of the queue.

    Attributes:
        column: all of it; out of sight while nothing waits.
        choice: which training is meant; its value is the `run`.
    """

    column: gr.Column
    choice: gr.Radio

    @property
    def components(self) -> list[Any]:
        """What `news` may set."""
        return [self.column, self.choice]

    def news(self, waiting: list[list[str]], chosen: str | None) -> dict[Any, Any]:
        """Values for a queue of `[run, name]`."""
        choices = [(f"{place}. {name}", run) for place, (run, name) in enumerate(waiting, 1)]
        still = chosen if any(run == chosen for run, _ in waiting) else None
        return {
            self.column: gr.update(visible=bool(waiting)),
            self.choice: gr.update(choices=choices, value=still),
        }


def waiting(services: Services) -> list[list[str]]:
    """What waits, as `[run, name]`, the next first."""
    return [[status.run, status.adapter_name] for status in services.jobs.waiting()]


def build_queue(services: Services) -> TrainingQueue:
    """Build the queue, empty."""
    with gr.Column(visible=False, elem_id="train-queue") as column:
        choice = gr.Radio(
            [],
            label="Waiting for their turn",
            info="One training runs at a time. Choose one to move it or to take it off.",
            elem_id="train-waiting",
        )
        with gr.Row():
            up = gr.Button("Move up", size="sm", elem_id="train-move-up")
            cancel = gr.Button("Take off the queue", size="sm", elem_id="train-cancel")
        problem = problem_place("train", "queue-problem")
    queue = TrainingQueue(column, choice)

    def moved(run: str | None) -> tuple[Any, ...]:
        services.jobs.move_up(_chosen(run))
        return tuple(queue.news(waiting(services), run).values())

    def cancelled(run: str | None) -> tuple[Any, ...]:
        services.jobs.cancel(_chosen(run))
        return tuple(queue.news(waiting(services), None).values())

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    explaining(up.click, moved, choice, queue.components, problem, **quick)
    explaining(cancel.click, cancelled, choice, queue.components, problem, **quick)
    return queue


def _chosen(run: str | None) -> str:
    if run is None:
        raise SettingError("Choose one of the trainings that wait.", "waiting")
    return run
