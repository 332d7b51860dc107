"""A photo of those dropped: moving the square that is cut out, its caption, removing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image, ImageOps

from ..photos import MAX_ZOOM, Crop, CroppedPhoto
from ..services import Services
from .crop_frame import crop_frame, dragged, framed
from .problems import EACH_CHOICE, explaining

if TYPE_CHECKING:
    from .photo_drop import PhotoDrop

_TILE = 160
_WAIT, _GO_ON = (
    f"() => {{ document.getElementById('train-crop').inert = {waiting}; }}"
    for waiting in ("true", "false")
)


@dataclass(frozen=True)
class PhotoEditor:
    """What can be done with a photo.

    Attributes:
        frame: the photo and its square; its value's `index` says which photo it is.
        crop: where the square is, by sliders.
        caption: of the photo.
        describe: writes the captions of all photos; None where no model is at hand.
        remove: takes the photo away.
        column: all of it.
    """

    frame: gr.HTML
    crop: list[gr.Slider]
    caption: gr.Textbox
    describe: gr.Button | None
    remove: gr.Button
    column: gr.Column


def build_editor(services: Services) -> PhotoEditor:
    """Build the editor, out of sight until there is a photo."""
    with gr.Column(visible=False, elem_id="train-crop") as column:
        frame = crop_frame()
        caption = gr.Textbox(
            label="Caption of this photo",
            info="What it shows, rare word included; empty: the instance prompt.",
            placeholder="a photo of sks dog on a sofa",
            max_length=services.limits.max_prompt_length,
            elem_id="train-caption",
        )
        describe = None
        if services.settings.captioner:
            describe = gr.Button(
                "Write captions for all photos", size="sm", elem_id="train-describe"
            )
        with gr.Row():
            crop = [
                _slider("Left–right", 0, 1, 0.5, "x"),
                _slider("Up–down", 0, 1, 0.5, "y"),
                _slider("Zoom", 1, MAX_ZOOM, 1, "zoom"),
            ]
        remove = gr.Button("Remove this photo", size="sm", elem_id="train-remove")
    return PhotoEditor(frame, crop, caption, describe, remove, column)


def _slider(label: str, low: float, high: float, value: float, name: str) -> gr.Slider:
    return gr.Slider(
        low,
        high,
        value=value,
        step=0.01,
        label=label,
        min_width=80,
        elem_id=f"train-crop-{name}",
    )


def wire_editor(
    dropped: PhotoDrop, editor: PhotoEditor, tiles: gr.Gallery, problem: gr.HTML
) -> None:
    """Let the editor change the photos."""
    photos_, key_, shelf = dropped.photos, dropped.key, dropped.shelf

    def choose(event: gr.SelectData, photos: list[CroppedPhoto]) -> tuple[Any, ...]:
        return edited(photos, event.index)

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
        tiles[index] = tile(photo)
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

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    last: dict[str, Any] = {"trigger_mode": "always_last", **quick}
    # The browser says which photo is meant, by its frame: an answer that sets another may be late.
    state = [editor.frame, photos_, tiles, key_]
    shown_ = [editor.frame, *editor.crop, editor.caption]
    # Until the chosen photo is there, what is done would be done to the one before.
    tiles.select(None, None, None, js=_WAIT, api_visibility="private")
    shown = explaining(tiles.select, choose, photos_, shown_, problem, **EACH_CHOICE, **quick)
    shown.then(None, None, None, js=_GO_ON, api_visibility="private")
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
    meant = [editor.frame, photos_, key_]
    explaining(editor.remove.click, drop_one, meant, dropped.shown, problem, **quick)


def edited(photos: Sequence[CroppedPhoto], chosen: int) -> tuple[Any, ...]:
    """Values of frame, sliders and caption for one of the photos."""
    photo = photos[chosen]
    crop = photo.crop
    return framed(photo, chosen), crop.x, crop.y, crop.zoom, photo.caption


def tile(photo: CroppedPhoto) -> tuple[Image.Image, str | None]:
    """A photo among the others: its square, and its caption if it has one."""
    square = ImageOps.contain(photo.square(), (_TILE, _TILE), Image.Resampling.LANCZOS)
    return square, photo.caption or None
