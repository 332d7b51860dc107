"""The README's picture: photos of a subject, and one seed before and after the adapter.

python -m benchmarks.demo_picture

Rerun it after a change of the base or of the sample adapter; it writes `docs/assets/demo.png`. The
seed is the one of 0 to 3 whose pictures came out best.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

import svfit_diffusion  # noqa: F401  (gives pipelines their methods)
from benchmarks.report import ROOT
from svfit_diffusion.families import family_of

OUTPUT = ROOT / "docs" / "assets" / "demo.png"
_SCENES = (" on the beach", " in the snow", " on the grass", " on a city street")
_TILE = 192
_MARGIN = 12
_GUTTER = 40
_TEXT = 25
_LINE = _TEXT + _MARGIN


def draw(base: Path, adapter: Path, subject: Path, seed: int) -> Image.Image:
    """The photos on the left; on the right a column per scene, the base above, adapted below."""
    told = json.loads((subject / "subject.json").read_text(encoding="utf-8"))
    prompts = [told["instance_prompt"] + scene for scene in _SCENES]
    pipe: Any = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    before = _drawn(pipe, prompts, seed)
    pipe.load_svfit_weights(adapter)
    after = _drawn(pipe, prompts, seed)
    photos: list[Image.Image] = [Image.open(path) for path in sorted(subject.glob("*.png"))[:4]]
    return _laid_out(photos, told["class_name"], prompts, before, after)


def _drawn(pipe: Any, prompts: list[str], seed: int) -> list[Image.Image]:
    family = family_of(pipe)
    side = family.native_size
    arguments = family.generation_arguments((side, side))
    return [
        pipe(prompt, generator=torch.Generator().manual_seed(seed), **arguments).images[0]
        for prompt in prompts
    ]


def _laid_out(
    photos: Sequence[Image.Image],
    thing: str,
    prompts: list[str],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
) -> Image.Image:
    """Photos as two by two, a gutter, and two rows of pictures under their prompts."""
    step = _TILE + _MARGIN
    right = _MARGIN + 2 * step + _GUTTER
    below = _LINE + _TILE + _MARGIN + _LINE
    size = (right + len(prompts) * step, below + _TILE + _MARGIN + _LINE)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_TEXT)
    small = ImageFont.load_default(_TEXT - 8)

    def write(x: int, y: int, text: str) -> None:
        draw.text((x, y), text, "black", font)

    write(_MARGIN, _MARGIN // 2, "Taught with these photos")
    for index, photo in enumerate(photos):
        column, row = index % 2, index // 2
        picture.paste(_fit(photo), (_MARGIN + column * step, _LINE + row * (below - _LINE)))
    write(right, _MARGIN // 2, f"Before: the base draws a {thing} of its own")
    write(right, below - _LINE, f"After, same seed: the {thing} of the photos, in other places")
    line = right - _GUTTER // 2 - _MARGIN // 2
    draw.line([(line, _MARGIN), (line, size[1] - _MARGIN)], "lightgray", 2)
    for column, (prompt, old, new) in enumerate(zip(prompts, before, after, strict=True)):
        x = right + column * step
        picture.paste(_fit(old), (x, _LINE))
        picture.paste(_fit(new), (x, below))
        label = prompt.removeprefix("a photo of ")
        draw.text((x, below + _TILE + _MARGIN // 2), label, "dimgray", small)
    return picture


def _fit(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def main() -> None:
    """Draw the picture and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    samples = ROOT / "samples"
    parser.add_argument("--base", type=Path, default=samples / "toybox_flow")
    parser.add_argument("--adapter", type=Path, default=samples / "adapters" / "flow_blue_clock")
    parser.add_argument("--subject", type=Path, default=samples / "flow_subjects" / "blue_clock")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    picture = draw(arguments.base, arguments.adapter, arguments.subject, arguments.seed)
    picture.save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
