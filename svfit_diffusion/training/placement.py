"""Which models of a pipeline are on the device, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn


class Placement:
    """Brings a pipeline's models to the device and takes them away.

    Args:
        pipe: the pipeline.
        device: where training runs.
        offload: never have more on it than is asked for; otherwise what was asked for once stays,
            until it is parked.
    """

    def __init__(self, pipe: Any, device: torch.device, *, offload: bool) -> None:
        self._pipe = pipe
        self._device = device
        self._offload = offload

    def bring(self, components: Collection[str]) -> None:
        """Have these on the device; with offloading, no others."""
        models = self._models()
        if self._offload:
            self.park([name for name in models if name not in components])
        for name in components:
            if name in models:
                models[name].to(self._device)

    def park(self, components: Collection[str]) -> None:
        """Take these off the device."""
        models = self._models()
        for name in components:
            if name in models:
                models[name].to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Have the pipeline draw: whole on the device, or model by model; where its models are
        afterwards, the caller says.
        """
        if not self._offload or self._device.type == "cpu":
            self._pipe.to(self._device)
            yield
            return
        self.park(list(self._models()))
        self._pipe.enable_model_cpu_offload(device=self._device)
        try:
            yield
        finally:
            self._pipe.remove_all_hooks()

    def _models(self) -> dict[str, nn.Module]:
        components: dict[str, Any] = self._pipe.components
        return {name: part for name, part in components.items() if isinstance(part, nn.Module)}
