"""How a base model draws, as the app offers it: sizes and schedulers."""

from __future__ import annotations

import dataclasses
from typing import Any

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.serving import drawing

from .errors import SettingError
from .picture import OWN_SCHEDULER, SCHEDULERS, PictureSettings

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Drawing(drawing.Drawing):
    """A text-to-image pipeline as the app calls it.

    Args:
        pipe: the pipeline.

    Raises:
        SettingError: it does not draw pictures from prompts alone.

    Attributes:
        schedulers: those of `SCHEDULERS` that it can draw with.
    """

    def __init__(self, pipe: Any) -> None:
        try:
            super().__init__(pipe)
        except ConfigError as error:
            raise SettingError(str(error)) from error
        # The others undo another kind of noise.
        is_diffusion = pipe.scheduler.config.get("prediction_type") in _PREDICTIONS
        self.schedulers = tuple(SCHEDULERS) if is_diffusion else (OWN_SCHEDULER,)

    def check(self, settings: PictureSettings) -> None:
        """Raise `SettingError` for the first setting that other base models alone can use."""
        for label, side in (("width", settings.width), ("height", settings.height)):
            if side % self.size_multiple:
                raise SettingError(
                    f"The {label} must be a multiple of {self.size_multiple} on this base model, "
                    f"not {side}.",
                    label,
                )
        if settings.scheduler not in self.schedulers:
            raise SettingError(
                f"This base model cannot draw with {settings.scheduler}; choose "
                f"“{OWN_SCHEDULER}” as the scheduler.",
                "scheduler",
            )

    def adapted(self, settings: PictureSettings) -> PictureSettings:
        """Settings drawn with on any base model, without what this one leaves no choice of."""
        chosen = settings.scheduler if settings.scheduler in self.schedulers else OWN_SCHEDULER
        negative = settings.negative_prompt if self.sampling.negative_prompt else ""
        return dataclasses.replace(settings, scheduler=chosen, negative_prompt=negative)
