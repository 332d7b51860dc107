"""The one base model in memory, and views of it that do not see each other's adapters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import svfit_diffusion  # noqa: F401  (gives pipelines the adapter methods)
from app.errors import SettingError
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import Family, family_of
from svfit_diffusion.training.base import BaseSource, load_base


class BaseModel:
    """A text-to-image pipeline, loaded once and never changed.

    Args:
        source: folder or hub id of a Stable Diffusion 1.x or 2.x model.
        device: where it lives; the accelerator if there is one by default.

    Raises:
        SettingError: it cannot be loaded, is no such model, or the device cannot be used.

    Attributes:
        source: as given.
        device: where it lives.
    """

    def __init__(self, source: str, device: str | None = None) -> None:
        self.source = source
        self.device = _usable_device(device or _best_device())
        try:
            self._pipe = load_base(BaseSource(source))
            self.family.check()
        except ConfigError as error:
            raise SettingError(str(error)) from error
        for model in _models(self._pipe):
            model.requires_grad_(False).eval()
        self._pipe.to(self.device)

    def view(self) -> StableDiffusionPipeline:
        """A pipeline of one's own over the same weights.

        Its modules and parameters are new objects whose values share the base's memory. Adapters
        loaded into it, and moving or casting it, are seen by nobody else. Its weights must not be
        written in place.
        """
        pipe = StableDiffusionPipeline(
            **{name: share_weights(c) for name, c in self._pipe.components.items()},
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def family(self) -> Family:
        """What the base is, as training sees it."""
        return family_of(self._pipe)

    @property
    def native_size(self) -> int:
        """Side in pixels of the pictures that the base was trained on."""
        return self.family.native_size


def _best_device() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def _usable_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise SettingError(f"device {name!r} cannot be used: {error}") from error


def _models(pipe: Any) -> list[nn.Module]:
    return [c for c in pipe.components.values() if isinstance(c, nn.Module)]


def share_weights(component: Any) -> Any:
    """A deep copy of a component whose tensors share the original's memory."""
    if not isinstance(component, nn.Module):
        return copy.deepcopy(component)
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in component.parameters()
    }
    memo |= {id(b): b.detach() for b in component.buffers()}
    return copy.deepcopy(component, memo)
