"""`svfit generate`: pictures from prompts, with adapters at strengths."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svfit_diffusion.cli.options import (
    Base,
    Dtype,
    IgnoreMismatch,
    Overwrite,
    Revision,
    Variant,
    base_of,
    device_named,
    read,
    refuse_existing,
    weighted,
)
from svfit_diffusion.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

_TILE = 256  # pixels of a picture in a grid, at most


def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several are rows of a grid.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter, or adapter:strength such as blue_car:0.7; several mix."),
    ] = None,
    base: Base = "",
    output: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("picture.png"),
    seed: Annotated[int, typer.Option(help="Of the first picture; the others count on.")] = 0,
    num_images: Annotated[
        int, typer.Option("--num_images", min=1, help="Pictures per prompt.")
    ] = 1,
    grid: Annotated[
        bool, typer.Option("--grid", help="One labelled picture of all; else a file each.")
    ] = False,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num_inference_steps", min=1, help="Default: the family's.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance_scale", help="Default: the family's.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative_prompt", help="What not to draw.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="In pixels; default: the base's own.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; default: the base's own.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: the accelerator, if any.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.float32,
    revision: Revision = None,
    variant: Variant = None,
    ignore_base_mismatch: IgnoreMismatch = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures from prompts, with adapters at strengths."""
    from svfit_diffusion.training.base import load_base
    from svfit_diffusion.training.skeleton import skeleton_if_told

    place = device_named(device)
    strengths = _strengths(adapter or [])
    files = _files(output, 1 if grid else len(prompts) * num_images)
    for file in files:
        refuse_existing(file, overwrite)
    adapters = {source: read(source) for source in strengths}
    source = base_of(base, revision, variant, list(adapters.values()))
    asked = (height, width, num_inference_steps, guidance_scale, negative_prompt)
    if bare := skeleton_if_told(source):
        _arguments(bare, *asked)  # what it cannot take is said before it is loaded
    pipe = load_base(source)
    arguments = _arguments(pipe, *asked)
    _put(pipe, adapters, strengths, ignore_base_mismatch)
    pipe.to(place, dtype.torch)
    rows = [
        [_draw(pipe, prompt, seed + i, arguments) for i in range(num_images)] for prompt in prompts
    ]
    settings = {"adapters": strengths, "base_model": base, **arguments}
    if grid:
        seeds = [f"seed {seed + i}" for i in range(num_images)]
        _save([_labelled(rows, prompts, seeds)], files, [{"prompts": prompts, **settings}])
    else:
        said = [{"prompt": p, "seed": seed + i} for p in prompts for i in range(num_images)]
        _save([picture for row in rows for picture in row], files, [s | settings for s in said])


def _strengths(texts: list[str]) -> dict[str, float]:
    """Each adapter's strength."""
    parts = [weighted(text) for text in texts]
    strengths = dict(parts)
    if len(strengths) < len(parts):
        (twice, count), *_ = Counter(source for source, _ in parts).most_common(1)
        given = " and ".join(f"{strength:g}" for source, strength in parts if source == twice)
        raise ConfigError(f"{twice} is given {count} times, at {given}; give it once")
    return strengths


def _files(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]


def _arguments(
    pipe: Any,
    height: int | None,
    width: int | None,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call, all but prompt and generator.

    Raises:
        ConfigError: it cannot take one.
    """
    from svfit_diffusion.families import family_of
    from svfit_diffusion.serving.drawing import Drawing

    family = family_of(pipe)
    size = (height or family.native_size, width or family.native_size)
    multiple = Drawing(pipe).size_multiple
    for name, side in zip(("height", "width"), size, strict=True):
        if side < 1 or side % multiple:
            raise ConfigError(
                f"{name} {side} does not fit this base model; use a multiple of {multiple}"
            )
    arguments = family.generation_arguments(size, steps, guidance)
    if negative_prompt is None:
        return arguments
    if not family.sampling.negative_prompt:
        raise ConfigError(
            f"a {type(pipe).__name__} takes no negative prompt; leave out --negative_prompt"
        )
    return arguments | {"negative_prompt": negative_prompt}


def _put(
    pipe: Any, adapters: dict[str, Any], strengths: dict[str, float], ignore_mismatch: bool
) -> None:
    from svfit_diffusion.adapters.choosing import set_svfit_adapters
    from svfit_diffusion.adapters.components import models_of
    from svfit_diffusion.adapters.loading import put_adapter

    for source, adapter in adapters.items():
        put_adapter(models_of(pipe), adapter, source, ignore_base_mismatch=ignore_mismatch)
    if adapters:
        set_svfit_adapters(pipe, list(strengths), list(strengths.values()))


def _draw(pipe: Any, prompt: str, seed: int, arguments: dict[str, Any]) -> Image.Image:
    import torch

    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
    picture: Image.Image = pipe(prompt, generator=generator, **arguments).images[0]
    return picture


def _labelled(rows: list[list[Image.Image]], prompts: list[str], seeds: list[str]) -> Image.Image:
    from svfit_diffusion.training.grid import labelled_grid

    return labelled_grid(rows, prompts, seeds, tile=_TILE)


def _save(pictures: list[Image.Image], files: list[Path], settings: list[dict[str, Any]]) -> None:
    """Write pictures, each with its settings as JSON in a text of the PNG."""
    from PIL.PngImagePlugin import PngInfo

    from svfit_diffusion.files.atomic import make_folder, write_atomically

    for picture, file, own in zip(pictures, files, settings, strict=True):
        info = PngInfo()
        info.add_itxt("svfit", json.dumps(own, ensure_ascii=False))
        make_folder(file.parent)
        write_atomically(file, partial(picture.save, format="PNG", pnginfo=info))
        print(file)
