"""Drawing with a pipeline in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn

from svfit_diffusion.families import Family
from svfit_diffusion.training.placement import Placement
from svfit_diffusion.training.subject import Subject


class Preview:
    """Draws with what has been learned so far.

    Args:
        family: of the pipeline.
        subject: in training on it.
        placement: of the pipeline's models.
        average: running mean of the shifts, which draws in their place if there is one.
        show_progress: show a progress bar while it draws.
    """

    def __init__(
        self,
        family: Family,
        subject: Subject,
        placement: Placement,
        average: EMAModel | None = None,
        *,
        show_progress: bool = False,
    ) -> None:
        self._family = family
        self._subject = subject
        self._placement = placement
        self._average = average
        self._bar = {"desc": "Drawing", "leave": False, "disable": not show_progress}

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """The pipeline, drawing at the base's cost; where its models are then, the caller says."""
        pipe = self._family.pipe
        shown = dict(getattr(pipe, "_progress_bar_config", {}))
        models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        modes = {model: model.training for model in models}
        with contextlib.ExitStack() as stack:
            stack.callback(pipe.set_progress_bar_config, **shown)
            for model, training in modes.items():
                stack.callback(model.train, training)
                model.eval()
            stack.enter_context(self.averaged())
            stack.callback(self._subject.set_trainable, True)
            self._subject.set_trainable(False)
            stack.enter_context(self._placement.generating())
            pipe.set_progress_bar_config(**self._bar)
            yield pipe

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """For a while, the running mean in place of the shifts, if there is one."""
        if self._average is None:
            yield
            return
        parameters = self._subject.parameters()
        self._average.store(parameters)
        self._average.copy_to(parameters)
        try:
            yield
        finally:
            self._average.restore(parameters)

    def draw(
        self, prompts: list[str], images_per_prompt: int, arguments: dict[str, Any], seed: int
    ) -> list[list[Image.Image]]:
        """Images for each prompt, while `generating`; the same seeds every time.

        Args:
            prompts: what to draw.
            images_per_prompt: how many of each.
            arguments: of the pipeline's call.
            seed: of the first image of each prompt.
        """
        images = []
        for prompt in prompts:
            generators = [torch.Generator().manual_seed(seed + i) for i in range(images_per_prompt)]
            called = self._family.pipe(
                prompt=[prompt] * images_per_prompt, generator=generators, **arguments
            )
            images.append(called.images)
        return images
