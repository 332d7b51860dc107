"""The one base model in memory, and views of it that do not see each other's adapters."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch
from torch import nn

import svfit_diffusion  # noqa: F401  (gives pipelines the adapter methods)
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import family_of
from svfit_diffusion.training.base import BaseSource, load_base

from .drawing import Drawing
from .errors import SettingError


class BaseModel:
    """A text-to-image pipeline, loaded once and never changed.

    Args:
        source: folder or hub id of a base model, or a single file.
        device: where it lives; the accelerator if there is one by default.

    Raises:
        SettingError: it cannot be loaded, does not draw from prompts, or the device cannot be
            used.

    Attributes:
        source: as given.
        device: where it lives.
        kind: of pipeline, for people, such as "Stable Diffusion XL".
        drawing: how it draws.
        untrainable: why it cannot be trained; None if it can.
    """

    def __init__(self, source: str, device: str | None = None) -> None:
        self.source = source
        self.device = _usable_device(device or _best_device())
        try:
            self._pipe = load_base(BaseSource(source))
        except ConfigError as error:
            raise SettingError(str(error)) from error
        self.kind = _kind(self._pipe)
        self.drawing = Drawing(self._pipe)
        self.untrainable = _why_untrainable(self._pipe)
        for model in _models(self._pipe):
            model.requires_grad_(False).eval()
        self._pipe.to(self.device)

    @property
    def weight_bytes(self) -> int:
        """What its weights take."""
        return sum(
            parameter.nbytes for model in _models(self._pipe) for parameter in model.parameters()
        )

    def view(self) -> Any:
        """A pipeline of one's own, of the base's class, over the same weights.

        Its modules and parameters are new objects whose values share the base's memory. Adapters
        loaded into it, and moving or casting it, are seen by nobody else. Its weights must not be
        written in place.
        """
        components = self._pipe.components
        accepted = inspect.signature(type(self._pipe)).parameters.keys() - components.keys()
        flags = {name: value for name, value in self._pipe.config.items() if name in accepted}
        shared = {name: share_weights(component) for name, component in components.items()}
        pipe = type(self._pipe)(**shared, **flags)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _kind(pipe: Any) -> str:
    name = type(pipe).__name__.removesuffix("Pipeline")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _why_untrainable(pipe: Any) -> str | None:
    try:
        family_of(pipe).check()
    except ConfigError as error:
        return str(error)
    return None


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
