"""Training for programs: `/train`, `/training_status` and `/cancel_training`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import LibraryError, UploadError
from ..photos import take_in
from ..services import Services
from ..training_choices import TrainingChoices
from ..training_status import TrainingStatus
from .messages import for_programs
from .training_form import TrainingForm


def build_api(services: Services, photos: gr.File, form: TrainingForm) -> None:
    """Offer what the form does to programs, with the form's fields and their values as defaults."""
    jobs, limits, base = services.jobs, services.limits, services.base

    def train(files: list[str] | None, *values: Any) -> dict[str, Any]:
        """Begin a training or queue it; `run` in the answer names it in the other calls."""
        taken, refusals = take_in([Path(file) for file in files or ()], limits)
        if refusals:
            raise UploadError(f"{refusals[0]}", "drop")
        choices = TrainingChoices(**dict(zip(form.fields, values, strict=True)))
        jobs.check_photos(len(taken))
        choices.check_name()
        return told(jobs.start(choices.name, taken, choices.config(limits, base)))

    def training_status(run: str) -> dict[str, Any]:
        """How far a training is; without a `run`, the one under way or else the last."""
        return told(run)

    def cancel_training(run: str) -> dict[str, Any]:
        """Take a training off the queue, or stop it so that it keeps what it has learned."""
        told(run)
        jobs.cancel(run)
        return told(run)

    def told(run: str) -> dict[str, Any]:
        now = jobs.status(run or None)
        if now is None:
            raise LibraryError(f"There is no training {run!r}, or it was long ago.")
        waits = [status.run for status in jobs.waiting()]
        return _as_json(now, waits.index(now.run) + 1 if now.run in waits else 0)

    names = ("photos", *form.fields)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    train.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    run, answer = gr.Textbox("", label="run", visible=False), gr.JSON(visible=False)
    for handler, inputs in (
        (train, [photos, *form.fields.values()]),
        (training_status, [run]),
        (cancel_training, [run]),
    ):
        gr.Button(visible=False).click(
            for_programs(handler), inputs, answer, api_name=handler.__name__, queue=False
        )


def _as_json(now: TrainingStatus, place: int) -> dict[str, Any]:
    """A training's status; `place` in the queue is 0 for one that does not wait."""
    return {
        "run": now.run,
        "adapter": now.adapter_name,
        "stage": now.stage.value,
        "message": now.message,
        "place": place,
        "step": now.step,
        "total_steps": now.total_steps,
        "loss": now.losses[-1] if now.losses else None,
        "seconds_left": now.seconds_left,
        "kept": now.kept,
    }
