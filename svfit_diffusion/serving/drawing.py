"""How a base model draws: as its family says, or else as its pipeline's own signature does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import Family, Sampling, family_of
from svfit_diffusion.serving.picture import SIDE_MULTIPLE, Picture

_NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator")
_USUAL_SIDE = 512


class Drawing:
    """A text-to-image pipeline as servers call it.

    Args:
        pipe: the pipeline.

    Raises:
        ConfigError: it does not draw pictures from prompts alone.

    Attributes:
        family: what it is; None where training knows none.
        sampling: how it draws, unless told otherwise.
        size_multiple: both sides of a picture must be a multiple of this many pixels.
        native_size: the side in pixels of the square pictures that it was made for.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._parameters = inspect.signature(pipe.__call__).parameters
        if not set(_NEEDED) <= set(self._parameters) or "num_frames" in self._parameters:
            raise ConfigError(
                f"a {type(pipe).__name__} does not draw pictures from prompts; give a "
                f"text-to-image base model"
            )
        self.family = _known_family(pipe)
        self.sampling = self.family.sampling if self.family else self._own_sampling()
        self.size_multiple = math.lcm(SIDE_MULTIPLE, self._own_multiple())
        self.native_size = max(1, self._own_size() // self.size_multiple) * self.size_multiple

    def arguments(self, wanted: Sequence[Picture]) -> dict[str, Any]:
        """Arguments of the pipeline's call for pictures that may share a batch."""
        common = wanted[0]
        maker = self.family.generation_arguments if self.family else self.sampling.arguments
        arguments = maker((common.height, common.width), common.steps, common.guidance_scale)
        blank = arguments.pop("negative_prompt", "")
        if not self.family:
            arguments = {n: value for n, value in arguments.items() if n in self._parameters}
        if self.sampling.negative_prompt:
            negative = [picture.negative_prompt or blank for picture in wanted]
            arguments["negative_prompt"] = negative
        return arguments | {
            "prompt": [picture.prompt for picture in wanted],
            # On the CPU, where a seed means the same noise whatever the device.
            "generator": [torch.Generator().manual_seed(picture.seed) for picture in wanted],
        }

    def watching(self, watch: Callable[[int, Tensor], None]) -> dict[str, Any]:
        """Arguments that have `watch(steps done, latents)` called after every step."""

        def on_step_end(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            watch(index + 1, tensors["latents"])
            return tensors

        if "callback_on_step_end" in self._parameters:
            return {"callback_on_step_end": on_step_end}
        if "callback" in self._parameters:  # an older way
            return {"callback": lambda index, _, latents: watch(index + 1, latents)}
        return {}

    def _own_sampling(self) -> Sampling:
        default = {name: parameter.default for name, parameter in self._parameters.items()}
        return Sampling(
            steps=default["num_inference_steps"],
            guidance_scale=float(default.get("guidance_scale") or 1.0),
            negative_prompt="negative_prompt" in default,
        )

    def _own_multiple(self) -> int:
        factor = int(getattr(self._pipe, "vae_scale_factor", SIDE_MULTIPLE))
        if not self.family:
            return 2 * factor  # transformers look at patches of two by two
        # Any size will do for a UNet; training wants its halves whole.
        return factor if self.family.denoiser == "unet" else self.family.size_multiple

    def _own_size(self) -> int:
        if self.family:
            return self.family.native_size
        denoiser = next(iter(models_of(self._pipe).values()), None)
        side = getattr(getattr(denoiser, "config", None), "sample_size", None)
        if not isinstance(side, int):
            return _USUAL_SIDE
        return side * int(getattr(self._pipe, "vae_scale_factor", SIDE_MULTIPLE))


def _known_family(pipe: Any) -> Family | None:
    try:
        return family_of(pipe)
    except ConfigError:
        return None
