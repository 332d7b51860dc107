"""The album on the Generate page: all pictures of a visitor, to be found, liked and used again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import SettingError
from ..services import Services
from .captions import caption
from .controls import small_pictures
from .messages import status
from .problems import EACH_CHOICE, explaining, problem_place

_LIKE, _UNLIKE = "Mark as favourite", "No favourite any more"
_STAR = "★ "
_NO_STAR = "\u2003\u2003"  # as wide as what is seen of a label, which is the star alone

Tile = tuple[str, str]
"""A picture's path and its label."""


def build_album(services: Services, chosen: gr.State, line: gr.HTML) -> None:
    """Build the folded section; it is filled when it is opened.

    Args:
        chosen: path of the picture that was chosen, of the album or elsewhere.
        line: the page's status line.
    """
    album = services.album
    with gr.Accordion("Album", open=False, elem_id="generate-album") as fold:
        with gr.Row():
            words = gr.Textbox(
                "",
                label="Find",
                info="Words of the prompt, or an adapter's name.",
                scale=3,
                elem_id="generate-find",
            )
            only = gr.Checkbox(False, label="Favourites only", elem_id="generate-favourites")
        pictures = small_pictures("Your pictures; click one to choose it", "generate-pictures")
        like = gr.Button(_LIKE, size="sm", interactive=False, elem_id="generate-like")
        problem = problem_place("generate", "album-problem")
    shown = gr.State([])

    def tiles(text: str, favourites_only: bool) -> list[Tile]:
        liked = album.favourites()
        return [
            (str(path), f"{_STAR if path.name in liked else _NO_STAR}{caption(settings)}")
            for path, settings in album.find(text, favourites_only)
        ]

    def find(text: str, favourites_only: bool) -> tuple[Any, ...]:
        found = tiles(text, favourites_only)
        return found, found

    def choose(event: gr.SelectData, found: list[Tile]) -> tuple[Any, ...]:
        path, text = found[event.index]
        label = _UNLIKE if Path(path).name in album.favourites() else _LIKE
        said = status(f"Chosen: {text.strip()}.")
        return path, said, gr.update(value=label, interactive=True)

    def toggle(path: str | None, text: str, favourites_only: bool) -> tuple[Any, ...]:
        if path is None:
            raise SettingError("Choose a picture of the album first.")
        is_liked = album.toggle_favourite(Path(path))
        return *find(text, favourites_only), gr.update(value=_UNLIKE if is_liked else _LIKE)

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    # One event, so that an answer to what was asked before never comes after the last.
    asked = functools.partial(gr.on, [fold.expand, words.change, only.change])
    last = {"trigger_mode": "always_last", **quick}
    explaining(asked, find, [words, only], [pictures, shown], problem, **last)
    picked = [chosen, line, like]
    explaining(pictures.select, choose, shown, picked, problem, **EACH_CHOICE, **quick)
    explaining(like.click, toggle, [chosen, words, only], [pictures, shown, like], problem, **quick)
