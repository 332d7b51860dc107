"""What a training may be asked for."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from svfit_diffusion.training import TrainingConfig

from .errors import SettingError
from .settings import Limits


def check_training(squares: Sequence[Image.Image], config: TrainingConfig, limits: Limits) -> None:
    """Raise `SettingError`, one plain sentence, for the first thing that a training may not have.

    Args:
        squares: the photos, cropped.
        config: settings.
        limits: on photos, prompts, steps and sizes.
    """
    if not limits.min_photos <= len(squares) <= limits.max_photos:
        raise SettingError(
            f"A training takes {limits.min_photos} to {limits.max_photos} photos, "
            f"you have given {len(squares)}."
        )
    if not config.instance_prompt.strip():
        raise SettingError(
            "The instance prompt is missing: name your subject by an identifier and its "
            "class, such as “a photo of sks dog”."
        )
    prompts = (config.instance_prompt, config.class_prompt or "", *config.validation_prompt)
    if max(map(len, prompts)) > limits.max_prompt_length:
        raise SettingError(f"A prompt has at most {limits.max_prompt_length} characters.")
    if (config.max_train_steps or 0) > limits.max_training_steps:
        raise SettingError(f"A training has at most {limits.max_training_steps} steps.")
    if (config.resolution or 0) > limits.max_side:
        raise SettingError(f"The resolution is at most {limits.max_side} pixels.")
