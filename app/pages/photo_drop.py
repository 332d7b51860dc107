"""Dropping photos, seeing what became of them, and moving the squares that are cut out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from ..photos import MAX_ZOOM, Crop, CroppedPhoto, Refusal, take_in
from ..settings import Limits
from .messages import plain_errors

_TILE = 160
_FRAME = 480


def photo_drop(limits: Limits) -> gr.State:
    """Build the drop zone, the squares and the crop editor.

    Returns:
        The photos taken in, a list of `CroppedPhoto`.
    """
    photos_ = gr.State([])
    chosen_ = gr.State(0)
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
    refused = gr.HTML(visible=False, elem_id="train-refused")
    tiles = gr.Gallery(
        label="Squares to learn; choose one to move it",
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
    with gr.Column(visible=False, elem_id="train-crop") as editor:
        frame = gr.Image(
            label="Photo",
            format="jpeg",
            height=220,
            interactive=False,
            buttons=[],
            elem_id="train-frame",
        )
        with gr.Row():
            x_ = _slider("Left to right", 0, 1, 0.5, "0 is the left edge, 1 the right.", "x")
            y_ = _slider("Top to bottom", 0, 1, 0.5, "0 is the upper edge, 1 the lower.", "y")
            zoom_ = _slider("Zoom", 1, MAX_ZOOM, 1, "1 is the largest square that fits.", "zoom")
        remove = gr.Button("Remove this photo", size="sm", elem_id="train-remove")
    crop = [x_, y_, zoom_]
    all_ = [photos_, chosen_, tiles, editor, frame, *crop]

    def take(files: list[str], photos: list[CroppedPhoto]) -> tuple[Any, ...]:
        with plain_errors():
            new, refusals = take_in([Path(file) for file in files], limits, len(photos))
        photos = [*photos, *new]
        chosen = max(0, len(photos) - len(new))
        return None, _refused(refusals), *_show(photos, chosen)

    def choose(event: gr.SelectData, photos: list[CroppedPhoto]) -> tuple[Any, ...]:
        return event.index, *_edit(photos[event.index])

    def adjust(
        x: float,
        y: float,
        zoom: float,
        photos: list[CroppedPhoto],
        chosen: int,
        shown: list[tuple[str, str | None]],
    ) -> tuple[Any, ...]:
        photo = photos[chosen].with_crop(Crop(x, y, zoom))
        # The other tiles stay the files they are, or they would be written while they are read.
        tiles: list[Any] = [path for path, _ in shown]
        tiles[chosen] = _tile(photo)
        return [*photos[:chosen], photo, *photos[chosen + 1 :]], tiles, _frame(photo)

    def drop_one(photos: list[CroppedPhoto], chosen: int) -> tuple[Any, ...]:
        photos = [photo for i, photo in enumerate(photos) if i != chosen]
        chosen = max(0, min(chosen, len(photos) - 1))
        return _show(photos, chosen)

    drop.upload(
        take,
        [drop, photos_],
        [drop, refused, *all_],
        api_visibility="private",
        concurrency_id="photos",
        concurrency_limit=2,
    )
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    tiles.select(choose, photos_, [chosen_, frame, *crop], **quick)
    gr.on(
        [slider.input for slider in crop],
        adjust,
        [*crop, photos_, chosen_, tiles],
        [photos_, tiles, frame],
        trigger_mode="always_last",
        **quick,
    )
    remove.click(drop_one, [photos_, chosen_], all_, **quick)
    return photos_


def _slider(label: str, low: float, high: float, value: float, info: str, name: str) -> gr.Slider:
    return gr.Slider(
        low,
        high,
        value=value,
        step=0.01,
        label=label,
        info=info,
        min_width=120,
        elem_id=f"train-crop-{name}",
    )


def _show(photos: list[CroppedPhoto], chosen: int) -> tuple[Any, ...]:
    """Updates of everything but the drop zone: photos, choice, tiles, editor, frame, sliders."""
    tiles = gr.update(value=[_tile(photo) for photo in photos], visible=bool(photos))
    edited = _edit(photos[chosen]) if photos else (gr.skip(),) * 4
    return photos, chosen, tiles, gr.update(visible=bool(photos)), *edited


def _edit(photo: CroppedPhoto) -> tuple[Any, ...]:
    """Updates of frame and sliders."""
    return _frame(photo), photo.crop.x, photo.crop.y, photo.crop.zoom


def _frame(photo: CroppedPhoto) -> Any:
    picture = ImageOps.contain(photo.framed(), (_FRAME, _FRAME), Image.Resampling.LANCZOS)
    return gr.update(value=picture, label=photo.name)


def _tile(photo: CroppedPhoto) -> Image.Image:
    return ImageOps.contain(photo.square(), (_TILE, _TILE), Image.Resampling.LANCZOS)


def _refused(refusals: Sequence[Refusal]) -> Any:
    """The files that were refused, by name, as HTML; hidden where there are none."""
    lines = "".join(f"<li>{html.escape(str(refusal))}</li>" for refusal in refusals)
    text = f'<div role="alert">Not taken:<ul>{lines}</ul></div>'
    return gr.update(value=text, visible=bool(refusals))
