"""A photo with the square that is learned, to be dragged."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from ..photos import MAX_ZOOM, Crop, CroppedPhoto

_SIDE = 480
_SCRIPT = Path(__file__).with_name("crop.js").read_text(encoding="utf-8")
_TEMPLATE = """${value ? `
<div class="crop">
  <img src="${value.src}" alt="${value.alt}" draggable="false">
  <div class="crop-square" style="${value.place}"><div class="crop-corner"></div></div>
</div>` : ""}"""


def crop_frame() -> gr.HTML:
    """Build the frame; its `input` event tells that the square was dragged."""
    return gr.HTML(
        None,
        html_template=_TEMPLATE,
        js_on_load=_SCRIPT,
        apply_default_css=False,
        elem_id="train-frame",
    )


def framed(photo: CroppedPhoto, index: int) -> dict[str, Any]:
    """The frame's value for a photo, the one at `index` among all."""
    picture = ImageOps.contain(photo.image, (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    width, height = photo.image.size
    left, top, right, bottom = photo.crop.box(photo.image.size)
    return {
        "index": index,
        "src": _data_url(picture),
        "alt": f"Photo {index + 1}, and the square of it that is learned",
        "width": width,
        "height": height,
        "x": photo.crop.x,
        "y": photo.crop.y,
        "zoom": photo.crop.zoom,
        "maxZoom": MAX_ZOOM,
        "place": f"left:{left / width:.3%};top:{top / height:.3%};"
        f"width:{(right - left) / width:.3%};height:{(bottom - top) / height:.3%}",
    }


def dragged(value: dict[str, Any]) -> Crop:
    """The crop that a frame's value says."""
    x, y, zoom = (round(float(value[name]), 2) for name in ("x", "y", "zoom"))
    return Crop(x, y, zoom)


def _data_url(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
