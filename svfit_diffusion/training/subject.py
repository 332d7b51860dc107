"""The adapter in training, on the models of a pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from svfit_diffusion.adapters import components
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import inject
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.errors import AdapterNameError

ADAPTER_NAME = "subject"


class Subject:
    """An adapter named `"subject"`, put on with δ = 0.

    Args:
        models: what it shifts, by component.
        config: rank and targets.
        show_progress: show a progress bar while singular values are computed.

    Raises:
        AdapterNameError: one of that name is there already.
        TargetError, ConfigError, BasisError: as `inject`; no model carries the adapter then.

    Attributes:
        models: as given.
    """

    def __init__(
        self, models: dict[str, nn.Module], config: SVFitConfig, *, show_progress: bool
    ) -> None:
        if ADAPTER_NAME in components.adapter_names(models):
            raise AdapterNameError(
                f"the pipeline carries an adapter {ADAPTER_NAME!r} already; delete it first"
            )
        self.models = models
        try:
            for model in models.values():
                inject(model, config, ADAPTER_NAME, show_progress=show_progress)
        except BaseException:
            self.withdraw()
            raise
        self._sigma_norm = self._initial_sigma_norm()

    @property
    def injections(self) -> dict[str, Injection]:
        """Of the models, by component."""
        return components.injections(self.models)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the base's weights under all layers in training, per component."""
        return {c: i.fingerprint(ADAPTER_NAME) for c, i in self.injections.items()}

    def parameters(self, component: str | None = None) -> list[nn.Parameter]:
        """Every trained shift, or those of one component."""
        return [
            parameter
            for name, injection in self.injections.items()
            if component in (None, name)
            for _, parameter in injection.sigma_parameters(ADAPTER_NAME)
        ]

    def set_trainable(self, trainable: bool) -> None:
        """Train the shifts, or draw with them at the base's cost."""
        for injection in self.injections.values():
            injection.set_enabled(True)
            injection.set_trainable(ADAPTER_NAME, trainable)

    @contextlib.contextmanager
    def absent(self) -> Iterator[None]:
        """While shifts are trained: let the models be the base's."""
        with contextlib.ExitStack() as stack:
            for injection in self.injections.values():
                stack.enter_context(injection.applied.paused())
            yield

    def withdraw(self) -> None:
        """Take the adapter off again, for a pipeline that someone else goes on using."""
        for injection in self.injections.values():
            if ADAPTER_NAME in injection.adapter_names:
                injection.remove_adapter(ADAPTER_NAME)

    def drift(self) -> float:
        """`‖δ‖ / ‖σ⁰‖` over all trained singular values."""
        norms: Any = torch._foreach_norm([p.detach() for p in self.parameters()])
        return float(torch.stack([norm.cpu() for norm in norms]).norm()) / self._sigma_norm

    def _initial_sigma_norm(self) -> float:
        squares = [
            shifted.basis.sigma[: shifted.deltas[ADAPTER_NAME].numel()].double().square().sum()
            for injection in self.injections.values()
            for shifted in injection.layers.values()
            if ADAPTER_NAME in shifted.deltas
        ]
        return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())
