"""Dropping photos, seeing what became of them, moving the squares that are cut out, captions."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from ..photo_shelf import PhotoShelf
from ..photos import MAX_ZOOM, Crop, CroppedPhoto, Refusal, take_in
from ..services import Services
from .crop_frame import crop_frame, dragged, framed
from .problems import explaining, problem_place

_TILE = 160


@dataclass(frozen=True)
class PhotoDrop:
    """Where photos are dropped.

    Attributes:
        drop: where files are dropped.
        photos: those taken in, a list of `CroppedPhoto`.
        key: a `PhotoShelf` key, kept in the browser.
        shown: all that follows from `photos`, to be set by `show`.
        shelf: keeps the photos over a reload.
    """

    drop: gr.File
    photos: gr.State
    key: gr.BrowserState
    shown: list[Any]
    shelf: PhotoShelf

    def show(self, photos: list[CroppedPhoto], chosen: int = 0) -> tuple[Any, ...]:
        """Values of `shown`: photos, tiles, editor, frame, sliders, caption."""
        tiles = gr.update(value=[_tile(photo) for photo in photos], visible=bool(photos))
        edited = _edit(photos, chosen) if photos else (gr.skip(),) * 5
        return photos, tiles, gr.update(visible=bool(photos)), *edited

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


@dataclass(frozen=True)
class _Editor:
    """What can be done with a photo."""

    frame: gr.HTML
    crop: list[gr.Slider]
    caption: gr.Textbox
    remove: gr.Button
    column: gr.Column
    describe: gr.Button | None


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
    refused = gr.HTML(visible=False, elem_id="train-refused")
    tiles = gr.Gallery(
        label="Squares to learn; choose one to move it or to caption it",
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
    editor = _build_editor(services)
    problem = problem_place("train", "photo-problem")
    shown: list[Any] = [
        photos_,
        tiles,
        editor.column,
        editor.frame,
        *editor.crop,
        editor.caption,
    ]
    dropped = PhotoDrop(drop, photos_, key_, shown, shelf)

    def take(files: list[str], photos: list[CroppedPhoto], key: object) -> tuple[Any, ...]:
        new, refusals = take_in([Path(file) for file in files], limits, len(photos))
        photos = [*photos, *new]
        shelf.put(key, photos)
        first = max(0, len(photos) - len(new))
        return None, _refused(refusals), *dropped.show(photos, first)

    def choose(event: gr.SelectData, photos: list[CroppedPhoto]) -> tuple[Any, ...]:
        return _edit(photos, event.index)

    def chosen(frame: dict[str, Any], photos: list[CroppedPhoto], *_: Any) -> CroppedPhoto:
        return photos[frame["index"]]

    def changed(
        photo: CroppedPhoto,
        frame: dict[str, Any],
        photos: list[CroppedPhoto],
        shown: list[Any],
        key: object,
    ) -> tuple[Any, ...]:
        index = frame["index"]
        photos = [*photos[:index], photo, *photos[index + 1 :]]
        shelf.put(key, photos)
        # The other tiles stay the files they are, or they would be written while they are read.
        tiles = list(shown)
        tiles[index] = _tile(photo)
        return photos, tiles

    def adjust(x: float, y: float, zoom: float, *state: Any) -> tuple[Any, ...]:
        photo = chosen(*state).with_crop(Crop(x, y, zoom))
        return *changed(photo, *state), framed(photo, state[0]["index"])

    def drag(*state: Any) -> tuple[Any, ...]:
        photo = chosen(*state).with_crop(dragged(state[0]))
        return *changed(photo, *state), photo.crop.x, photo.crop.y, photo.crop.zoom

    def write(caption: str, *state: Any) -> tuple[Any, ...]:
        if not state[0]:  # no photo any more
            return gr.skip(), gr.skip()
        photo = chosen(*state).with_caption(caption)
        if (
            photo.caption == chosen(*state).caption
        ):  # another photo was chosen, and its caption is shown
            return gr.skip(), gr.skip()
        return changed(photo, *state)

    def drop_one(frame: dict[str, Any], photos: list[CroppedPhoto], key: object) -> tuple[Any, ...]:
        gone = frame["index"]
        photos = [photo for i, photo in enumerate(photos) if i != gone]
        shelf.put(key, photos)
        return dropped.show(photos, max(0, min(gone, len(photos) - 1)))

    explaining(
        drop.upload,
        take,
        [drop, photos_, key_],
        [drop, refused, *shown],
        problem,
        concurrency_id="photos",
        concurrency_limit=2,
    )
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    last: dict[str, Any] = {"trigger_mode": "always_last", **quick}
    # The browser says which photo is meant, by its frame: an answer that sets another may be late.
    state = [editor.frame, photos_, tiles, key_]
    edited = [editor.frame, *editor.crop, editor.caption]
    explaining(tiles.select, choose, photos_, edited, problem, **quick)
    for slider in editor.crop:
        explaining(
            slider.input,
            adjust,
            [*editor.crop, *state],
            [photos_, tiles, editor.frame],
            problem,
            **last,
        )
    explaining(
        editor.frame.input,
        drag,
        state,
        [photos_, tiles, *editor.crop],
        problem,
        **last,
    )
    explaining(
        editor.caption.change, write, [editor.caption, *state], [photos_, tiles], problem, **last
    )
    explaining(
        editor.remove.click, drop_one, [editor.frame, photos_, key_], shown, problem, **quick
    )
    return dropped


def _build_editor(services: Services) -> _Editor:
    with gr.Column(visible=False, elem_id="train-crop") as column:
        frame = crop_frame()
        caption = gr.Textbox(
            label="Caption of this photo",
            info="What it shows, rare word included; empty: the instance prompt.",
            placeholder="a photo of sks dog on a sofa",
            max_length=services.limits.max_prompt_length,
            elem_id="train-caption",
        )
        with gr.Row():
            crop = [
                _slider("Left to right", 0, 1, 0.5, "x"),
                _slider("Top to bottom", 0, 1, 0.5, "y"),
                _slider("Zoom", 1, MAX_ZOOM, 1, "zoom"),
            ]
        remove = gr.Button("Remove this photo", size="sm", elem_id="train-remove")
    return _Editor(frame, crop, caption, remove, column, None)


def _slider(label: str, low: float, high: float, value: float, name: str) -> gr.Slider:
    return gr.Slider(
        low,
        high,
        value=value,
        step=0.01,
        label=label,
        min_width=100,
        elem_id=f"train-crop-{name}",
    )


def _edit(photos: Sequence[CroppedPhoto], chosen: int) -> tuple[Any, ...]:
    """Values of frame, sliders and caption."""
    photo = photos[chosen]
    crop = photo.crop
    return framed(photo, chosen), crop.x, crop.y, crop.zoom, photo.caption


def _tile(photo: CroppedPhoto) -> tuple[Image.Image, str | None]:
    square = ImageOps.contain(photo.square(), (_TILE, _TILE), Image.Resampling.LANCZOS)
    return square, photo.caption or None


def _refused(refusals: Sequence[Refusal]) -> Any:
    """The files that were refused, by name, as HTML; hidden where there are none."""
    lines = "".join(f"<li>{html.escape(str(refusal))}</li>" for refusal in refusals)
    text = f'<div class="problem" role="alert">Not taken:<ul>{lines}</ul></div>'
    return gr.update(value=text, visible=bool(refusals))
