"""What the singular values of a picture carry, on the Inspect page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from svfit_diffusion.spectrum.basis import Basis

from ..errors import UploadError
from ..inspection import as_picture, as_stretched_picture, image_bases, sample_picture, split
from ..photos import take_in
from ..services import Services
from .inspect_parts import QUICK, rank_slider, shares, up_to
from .problems import explaining, problem_place

_SEEN_SIDE = 256


def build_picture(services: Services, tab: gr.Tab) -> None:
    """What the singular values of a picture carry, as in figure 1 of the SVFit paper."""
    gr.Markdown("## A picture, as its singular values make it")
    gr.HTML(
        "A picture is three matrices, red, green and blue. A few of their largest singular values "
        "carry most of what one sees, the smallest next to nothing. A weight is a matrix as well.",
        elem_classes="hint",
    )
    bases_ = gr.State(None)
    with gr.Row():
        rank_ = rank_slider("Singular values per colour", "picture")
        upload = gr.UploadButton(
            "Use a picture of yours",
            file_types=["image"],
            size="sm",
            scale=0,
            min_width=200,
            elem_id="inspect-upload",
        )
    line = gr.HTML(elem_id="inspect-picture-line", elem_classes="hint")
    problem = problem_place("inspect", "picture-problem")
    pictures = gr.Gallery(
        label="Whole, largest, smallest",
        format="png",
        columns=3,
        height="auto",
        object_fit="contain",
        interactive=False,
        elem_id="inspect-pictures",
        elem_classes="compact",
    )

    def sample(bases: list[Basis] | None, rank: float) -> tuple[Any, ...]:
        if bases is not None:
            return (gr.skip(),) * 4
        return opened(sample_picture(), rank)

    def uploaded(file: str, rank: float) -> tuple[Any, ...]:
        photos, refusals = take_in([Path(file)], services.limits)
        if refusals:
            raise UploadError(str(refusals[0]))
        return opened(photos[0].image, rank)

    def opened(image: Image.Image, rank: float) -> tuple[Any, ...]:
        bases = image_bases(image)
        full = bases[0].rank
        return bases, up_to(full, rank), *show(bases, min(rank, full))

    def show(bases: list[Basis] | None, rank: float) -> tuple[Any, ...]:
        if bases is None:
            return gr.skip(), gr.skip()
        parts = split(bases, int(rank))
        tiles = [
            (_seen(as_picture(parts.whole)), "whole"),
            (_seen(as_picture(parts.leading)), "largest"),
            (_seen(as_stretched_picture(parts.trailing)), "smallest"),
        ]
        return f"{shares('picture', parts)} The last is shown in full contrast.", tiles

    shown = [bases_, rank_, line, pictures]
    explaining(tab.select, sample, [bases_, rank_], shown, problem, **QUICK)
    explaining(upload.upload, uploaded, [upload, rank_], shown, problem)
    explaining(
        rank_.input,
        show,
        [bases_, rank_],
        [line, pictures],
        problem,
        trigger_mode="always_last",
        **QUICK,
    )


def _seen(picture: Image.Image) -> Image.Image:
    """A small picture enlarged as it is, so that browsers do not blur what is to be seen."""
    factor = max(1, _SEEN_SIDE // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)
