"""A request for pictures in the shape of OpenAI's images endpoint, and the pictures it means."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.serving.drawing import Drawing
from svfit_diffusion.serving.limits import MAX_GUIDANCE, MAX_STRENGTH, RequestLimits
from svfit_diffusion.serving.picture import MAX_SEED, SIDE_MULTIPLE, Picture

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class _Strict(BaseModel):
    # A misspelt `adapters` would give a picture without them.
    model_config = ConfigDict(extra="forbid")


class AdapterChoice(_Strict):
    """An adapter of a picture."""

    name: str
    strength: float = Field(1.0, ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)


class ImagesRequest(_Strict):
    """What `POST /v1/images/generations` takes."""

    prompt: str = Field(min_length=1)
    n: int = Field(1, ge=1)
    size: str = "auto"
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    adapters: list[AdapterChoice] = Field(default_factory=list)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    negative_prompt: str = ""
    response_format: Literal["b64_json"] = "b64_json"
    model: str | None = None
    user: str | None = None


def pictures_in(request: ImagesRequest, drawing: Drawing, limits: RequestLimits) -> list[Picture]:
    """The pictures that a request asks for, with seeds that count on from its own.

    Raises:
        ConfigError: it asks for more than is allowed, or for what the base model cannot draw.
    """
    _check_most("n", request.n, limits.pictures)
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        _check_most(f"characters of {name}", len(text), limits.prompt)
    _check_most("adapters", len(request.adapters), limits.adapters)
    width, height = _size(request.size, drawing, limits)
    steps = request.num_inference_steps or drawing.sampling.steps
    _check_most("num_inference_steps", steps, limits.steps)
    if request.negative_prompt and not drawing.sampling.negative_prompt:
        raise ConfigError("got a negative_prompt, which this base model does not take: leave it")
    guidance = request.guidance_scale
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return [
        Picture(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            adapters=_strengths(request.adapters),
            steps=steps,
            guidance_scale=drawing.sampling.guidance_scale if guidance is None else guidance,
            width=width,
            height=height,
            seed=(seed + number) % (MAX_SEED + 1),
        )
        for number in range(request.n)
    ]


def _check_most(what: str, found: int, most: int) -> None:
    if found > most:
        raise ConfigError(f"got {what}: {found}, expected at most {most}")


def _size(text: str, drawing: Drawing, limits: RequestLimits) -> tuple[int, int]:
    """Width and height in pixels."""
    if text == "auto":
        return drawing.native_size, drawing.native_size
    match = _SIZE.fullmatch(text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    multiple, least = drawing.size_multiple, 2 * SIDE_MULTIPLE
    if any(side % multiple or not least <= side <= limits.side for side in sides):
        raise ConfigError(
            f"got size {text[:20]!r}, expected auto, or WIDTHxHEIGHT of multiples of {multiple} "
            f"from {least} to {limits.side} pixels"
        )
    return sides


def _strengths(chosen: list[AdapterChoice]) -> dict[str, float]:
    twice = [name for name, times in Counter(c.name for c in chosen).items() if times > 1]
    if twice:
        raise ConfigError(f"got adapter {twice[0][:64]!r} twice: give it once, with one strength")
    return {choice.name: choice.strength for choice in chosen}
