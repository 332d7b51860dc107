"""Settings of a training that go together, by how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

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
