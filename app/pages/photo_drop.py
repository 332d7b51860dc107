"""Dropping photos, seeing what became of them, and having them kept over a reload."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..photo_shelf import PhotoShelf
from ..photos import CroppedPhoto, Refusal, take_in
from ..services import Services
from ..settings import SAMPLES
from .photo_editor import build_editor, edited, tile, wire_editor
from .problems import explaining, problem_place

_BUS = SAMPLES / "flow_subjects" / "school_bus"
_SAMPLE_PHOTOS = [str(path) for path in sorted(_BUS.glob("*.png"))]
"""For who has none at hand; an installed package brings none either."""


@dataclass(frozen=True)
class PhotoDrop:
    """Where photos are dropped.

    Attributes:
        drop: where files are dropped.
        photos: those taken in, a list of `CroppedPhoto`.
        tiles: their squares.
        key: a `PhotoShelf` key, kept in the browser.
        describe: writes the captions of all photos; None where no model is at hand.
        shown: all that follows from `photos`, to be set by `show`.
        shelf: keeps the photos over a reload.
    """

    drop: gr.File
    photos: gr.State
    tiles: gr.Gallery
    key: gr.BrowserState
    describe: gr.Button | None
    shown: list[Any]
    shelf: PhotoShelf

    def show(self, photos: list[CroppedPhoto], chosen: int = 0) -> tuple[Any, ...]:
        """Values of `shown`: photos, offer, tiles, editor, frame, sliders, caption."""
        offer = gr.update(visible=bool(_SAMPLE_PHOTOS) and not photos)
        tiles = gr.update(value=[tile(photo) for photo in photos], visible=bool(photos))
        edits = edited(photos, chosen) if photos else (gr.skip(),) * 5
        return photos, offer, tiles, gr.update(visible=bool(photos)), *edits

    def restore(self, load: Callable[..., Any]) -> None:
        """Bring back what the visitor dropped before the page was loaded."""

        def restored(key: object) -> tuple[Any, ...]:
            key = self.shelf.key(key)
            photos = self.shelf.photos(key)
            return key, *(self.show(photos) if photos else (gr.skip(),) * len(self.shown))

        load(
            restored,
            self.key,
            [self.key, *self.shown],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def photo_drop(services: Services, key_: gr.BrowserState) -> PhotoDrop:
    """Build the drop zone, the squares and the editor of a photo.

    Args:
        key_: keeps a `PhotoShelf` key.
    """
    limits, shelf = services.limits, PhotoShelf(services.limits)
    photos_ = gr.State([])
    gr.HTML(
        f"Drop {limits.min_photos} to {limits.max_photos} photos of one subject: sharp, from "
        "several sides, nothing else of its kind in the picture.",
        elem_classes="hint",
    )
    drop = gr.File(
        label="Photos",
        file_count="multiple",
        file_types=["image"],
        height=150,
        elem_id="train-drop",
    )
    offer = gr.Button(
        "No photos at hand? Take these of a bus",
        size="sm",
        visible=bool(_SAMPLE_PHOTOS),
        elem_id="train-sample-photos",
    )
    refused = gr.HTML(visible=False, elem_id="train-refused")
    tiles = gr.Gallery(
        label="Squares to learn; choose one to edit it",
        format="png",
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=False,
        elem_id="train-tiles",
        elem_classes="compact",
    )
    editor = build_editor(services)
    problem = problem_place("train", "photo-problem")
    shown: list[Any] = [
        photos_,
        offer,
        tiles,
        editor.column,
        editor.frame,
        *editor.crop,
        editor.caption,
    ]
    dropped = PhotoDrop(drop, photos_, tiles, key_, editor.describe, shown, shelf)

    def take(files: list[str], photos: list[CroppedPhoto], key: object) -> tuple[Any, ...]:
        new, refusals = take_in([Path(file) for file in files], limits, len(photos))
        photos = [*photos, *new]
        shelf.put(key, photos)
        first = max(0, len(photos) - len(new))
        return None, _refused(refusals), *dropped.show(photos, first)

    def take_sample(photos: list[CroppedPhoto], key: object) -> tuple[Any, ...]:
        return take(_SAMPLE_PHOTOS, photos, key)

    taken = [drop, refused, *shown]
    shared: dict[str, Any] = {"concurrency_id": "photos", "concurrency_limit": 2}
    explaining(drop.upload, take, [drop, photos_, key_], taken, problem, **shared)
    explaining(offer.click, take_sample, [photos_, key_], taken, problem, **shared)
    wire_editor(dropped, editor, tiles, problem)
    return dropped


def _refused(refusals: Sequence[Refusal]) -> Any:
    """The files that were refused, by name, as HTML; hidden where there are none."""
    lines = "".join(f"<li>{html.escape(str(refusal))}</li>" for refusal in refusals)
    text = f'<div class="problem" role="alert">Not taken:<ul>{lines}</ul></div>'
    return gr.update(value=text, visible=bool(refusals))
