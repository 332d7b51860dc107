"""What decides a picture: the settings that a form, the API or a PNG gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from svfit_diffusion.serving.limits import MAX_GUIDANCE, MAX_STRENGTH
from svfit_diffusion.serving.picture import MAX_SEED, SIDE_MULTIPLE, Picture

from .errors import SettingError
from .settings import Limits

OWN_SCHEDULER = "The base model's own"
SCHEDULERS: Mapping[str, type[SchedulerMixin] | None] = {
    OWN_SCHEDULER: None,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
    "Euler ancestral": EulerAncestralDiscreteScheduler,
    "Heun": HeunDiscreteScheduler,
    "DDIM": DDIMScheduler,
}
"""Schedulers by the name that visitors see; None keeps the base model's."""


@dataclass(frozen=True)
class PictureSettings(Picture):
    """What decides one picture.

    Attributes:
        prompt: what it shows.
        negative_prompt: what it should not show; without effect at a guidance of 1 or less.
        adapters: strength of each adapter by name; 0 is the base model, 1 as trained.
        steps: sampling steps.
        guidance_scale: how closely it follows the prompt; 1 is not at all pushed.
        width: in pixels, a multiple of 8.
        height: in pixels, a multiple of 8.
        seed: of its noise, 0 to 2³² − 1.
        scheduler: a name of `SCHEDULERS`.
    """

    prompt: str
    negative_prompt: str = ""
    adapters: Mapping[str, float] = field(default_factory=dict)
    steps: int = 20
    guidance_scale: float = 2.5
    width: int = 64
    height: int = 64
    seed: int = 0
    scheduler: str = OWN_SCHEDULER

    def check(self, limits: Limits) -> None:
        """Raise `SettingError`, one plain sentence, for the first setting that cannot be used.

        Settings may come from a file that anyone can write, so their types are checked as well.
        """
        texts = (("prompt", "prompt"), ("negative prompt", "negative"))
        for (label, place), text in zip(texts, (self.prompt, self.negative_prompt), strict=True):
            if not _is_text(text) or len(text) > limits.max_prompt_length:
                raise SettingError(
                    f"The {label} must be a text of at most {limits.max_prompt_length} characters.",
                    place,
                )
        if not isinstance(self.adapters, Mapping) or len(self.adapters) > limits.max_adapters:
            raise SettingError(f"Choose at most {limits.max_adapters} adapters.", "adapters")
        for name, strength in self.adapters.items():
            what = f"The strength of “{name:.64}”"
            _check_number("adapters", what, strength, -MAX_STRENGTH, MAX_STRENGTH)
        _check_whole("steps", "The number of steps", self.steps, 1, limits.max_steps)
        _check_number("guidance", "Guidance", self.guidance_scale, 0, MAX_GUIDANCE)
        for label, side in (("width", self.width), ("height", self.height)):
            _check_whole(label, f"The {label}", side, 2 * SIDE_MULTIPLE, limits.max_side)
            if side % SIDE_MULTIPLE:
                raise SettingError(
                    f"The {label} must be a multiple of {SIDE_MULTIPLE}, not {side}.", label
                )
        if not isinstance(self.scheduler, str) or self.scheduler not in SCHEDULERS:
            raise SettingError(
                f"The scheduler must be one of {', '.join(SCHEDULERS)}.", "scheduler"
            )
        _check_whole("seed", "The seed", self.seed, 0, MAX_SEED)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], limits: Limits) -> PictureSettings:
        """Settings of names and values, such as those of a PNG; unknown names are passed over.

        Raises:
            SettingError: the prompt is missing, or a value cannot be used.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "prompt" not in known:
            raise SettingError("The prompt is missing.")
        settings = cls(**known)
        settings.check(limits)
        return settings


def variations(settings: PictureSettings, count: int, limits: Limits) -> list[PictureSettings]:
    """The same settings with `count` consecutive seeds.

    Raises:
        SettingError: there are too many, or a setting cannot be used.
    """
    _check_whole("count", "The number of pictures", count, 1, limits.max_images)
    settings.check(limits)
    return [replace(settings, seed=(settings.seed + i) % (MAX_SEED + 1)) for i in range(count)]


def whole(value: Any) -> Any:
    """A float that is a whole number as an int, anything else as it is.

    Browsers send whole numbers as they please, 20 or 20.0.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_text(value: object) -> bool:
    """Whether `value` is a string that can be sent on; JSON may hold halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_whole(place: str, what: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SettingError(f"{what} must be a whole number from {low} to {high}.", place)


def _check_number(place: str, what: str, value: object, low: float, high: float) -> None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise SettingError(f"{what} must be a number from {low:g} to {high:g}.", place)
