"""Settings of a training that go together, by how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from svfit_diffusion.families import Family
from svfit_diffusion.training import TrainingConfig
from svfit_diffusion.training.preparation import DEFAULT_STEPS


@dataclass(frozen=True)
class Preset:
    """Settings that go together.

    Attributes:
        steps: optimizer steps.
        learning_rate: of the shifts.
        prior_preservation: whether to train on class images, too.
    """

    steps: int
    learning_rate: float
    prior_preservation: bool


_RATE = TrainingConfig.learning_rate
PRESETS = {
    "quick": Preset(steps=120, learning_rate=2 * _RATE, prior_preservation=False),
    "balanced": Preset(steps=DEFAULT_STEPS, learning_rate=_RATE, prior_preservation=True),
    "thorough": Preset(steps=1000, learning_rate=_RATE, prior_preservation=True),
}
DEFAULT_PRESET = "balanced"

_SMALL = 100_000_000


def is_small(family: Family | None) -> bool:
    """Whether a base's denoiser has fewer than a hundred million weights."""
    return family is not None and sum(p.numel() for p in family.model.parameters()) < _SMALL


def usual_target(family: Family | None) -> list[str]:
    """The layers to train of a base's denoiser: all of a small one, which learns more by them;
    attention of a large one, where bases of all layers take hours and gigabytes.
    """
    return ["all"] if is_small(family) else ["attention"]
