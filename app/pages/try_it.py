"""From a training to its first pictures: the Generate page opens with adapter and prompt set."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..services import Services
from .generate_parts import GenerateParts
from .train import TrainPage


def wire_try_it(
    services: Services, tabs: gr.Tabs, generate: GenerateParts, train: TrainPage
) -> None:
    """Let the button of the Train page lead to the Generate page."""

    def lead(seen: dict[str, Any] | None) -> tuple[Any, ...]:
        now = services.jobs.status((seen or {}).get("run"))
        assert now is not None  # the button is shown with it
        return (
            gr.Tabs(selected="generate"),
            now.config.instance_prompt,
            gr.update(choices=services.library.names(), value=[now.adapter_name]),
            {now.adapter_name: 1.0},
        )

    led = train.try_it.click(
        lead,
        train.seen,
        [tabs, generate.prompt, *generate.mixer.components],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    generate.mixer.show_sliders(led.success)
