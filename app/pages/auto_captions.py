"""Captions that a model writes, beneath all photos at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..captioning import Captioner, as_caption
from ..photos import CroppedPhoto
from ..services import Services
from .messages import status
from .photo_drop import PhotoDrop
from .problems import explaining


def wire_captions(
    services: Services, dropped: PhotoDrop, prompt: Any, line: gr.HTML, problem: gr.HTML
) -> None:
    """Let the button write captions, where a model is at hand.

    Args:
        services: its settings name the model.
        dropped: the photos.
        prompt: the instance prompt, which begins every caption.
        line: says how far it is.
        problem: where a problem stands.
    """
    if dropped.describe is None or services.settings.captioner is None:
        return
    captioner = Captioner(services.settings.captioner)

    def describe(
        photos: list[CroppedPhoto], key: object, instance_prompt: str
    ) -> Iterator[tuple[Any, ...]]:
        captioned = []
        for number, photo in enumerate(photos):
            said = status(f"Looking at {photo.name} …", number, len(photos))
            yield said, *(gr.skip(),) * len(dropped.shown)
            text = as_caption(instance_prompt, captioner.describe(photo.square()))
            captioned.append(photo.with_caption(text))
        dropped.shelf.put(key, captioned)
        yield status("Captions are written; change what is wrong."), *dropped.show(captioned)

    explaining(
        dropped.describe.click,
        describe,
        [dropped.photos, dropped.key, prompt],
        [line, *dropped.shown],
        problem,
        line=line,
        show_progress="hidden",
        concurrency_id="captions",
        concurrency_limit=1,
    )
