"""Pictures drawn while training: a row for every seed, a column for every step."""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Sequence

from PIL import Image

from ..training_status import Sample

_SIDE = 128


def step_name(step: int) -> str:
    """What to call the pictures of a step."""
    return f"step {step}" if step else "base model"


def rows(prompts: Sequence[str], samples: Sequence[Sample]) -> str:
    """All pictures as an HTML table; nothing where there are none."""
    if not samples:
        return ""
    head = "".join(f"<th scope='col'>{step_name(sample.step)}</th>" for sample in samples)
    body = "".join(
        f"<tr><th scope='rowgroup' colspan='{len(samples)}'>{html.escape(prompt)}</th></tr>"
        + "".join(
            f"<tr>{_cells(prompt, samples, place, row)}</tr>"
            for row in range(len(samples[0].images[place]))
        )
        for place, prompt in enumerate(prompts)
    )
    return (
        "<div class='sample-rows' tabindex='0' role='region' aria-label='Pictures by step'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(prompt: str, samples: Sequence[Sample], place: int, row: int) -> str:
    alt = "“{}”, picture {}, {}"
    return "".join(
        f"<td><img src='{_thumbnails(sample)[place][row]}' width='{_SIDE}' height='{_SIDE}' "
        f"alt='{html.escape(alt.format(prompt, row + 1, step_name(sample.step)))}'></td>"
        for sample in samples
    )


@functools.lru_cache(maxsize=32)  # every page that watches asks for the same
def _thumbnails(sample: Sample) -> list[list[str]]:
    return [[_thumbnail(image) for image in images] for images in sample.images]


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
