"""The adapter in training, on the models of a pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from svfit_diffusion.adapters import components
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import inject, inject_beside
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.errors import AdapterNameError
from svfit_diffusion.files.own_word import OwnWord

ADAPTER_NAME = "subject"


class Subject:
    """An adapter, put on with δ = 0.

    Args:
        models: what it shifts, by component.
        config: rank and targets.
        device: of the training, where singular values are computed and shifts lie, wherever the
            models are.
        show_progress: show a progress bar while singular values are computed.
        name: of the adapter.
        owners: whose rows are whose, if others are trained in the same pass; they have the same
            rank and targets, and share what is kept of the basis.
        strength: to draw with.
        word: of the subject's own, for the first of the models, and the encoder of its text.

    Raises:
        AdapterNameError: one of that name is there already.
        TargetError, ConfigError, BasisError: as `inject`; no model carries the adapter then.

    Attributes:
        models: as given.
        name: as given.
        owners: as given.
        strength: as given.
    """

    def __init__(
        self,
        models: dict[str, nn.Module],
        config: SVFitConfig,
        device: torch.device,
        *,
        show_progress: bool,
        name: str = ADAPTER_NAME,
        owners: RowOwners | None = None,
        strength: float = 1.0,
        word: tuple[OwnWord, nn.Module] | None = None,
    ) -> None:
        if name in components.adapter_names(models):
            raise AdapterNameError(
                f"the pipeline carries an adapter {name!r} already; delete it first"
            )
        self.models = models
        self.name = name
        self.owners = owners
        self.strength = strength
        others = owners.names if owners else []
        try:
            for model in models.values():
                if others:
                    inject_beside(model, others[0], name)
                else:
                    inject(model, config, name, show_progress=show_progress, device=device)
            if word:
                denoiser = Injection.of(next(iter(models.values())))
                denoiser.words.add(name, *word)
        except BaseException:
            self.withdraw()
            raise
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        if owners:
            owners.names.append(name)
        self._sigma_norm = self._initial_sigma_norm()

    @property
    def injections(self) -> dict[str, Injection]:
        """Of the models, by component."""
        return components.injections(self.models)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the base's weights under all layers in training, per component."""
        return {c: i.fingerprint(self.name) for c, i in self.injections.items()}

    @property
    def quantization(self) -> dict[str, str]:
        """How these weights are quantised, of components where they are."""
        found = {c: i.quantization(self.name) for c, i in self.injections.items()}
        return {component: kind for component, kind in found.items() if kind}

    def parameters(self, component: str | None = None) -> list[nn.Parameter]:
        """All that is trained, or what is of one component: shifts, and the vectors of a word."""
        return [
            parameter
            for name, injection in self.injections.items()
            if component in (None, name)
            for parameter in injection.parameters(self.name)
        ]

    def shifts(self) -> list[nn.Parameter]:
        """Every trained shift."""
        return [
            shift
            for injection in self.injections.values()
            for _, shift in injection.sigma_parameters(self.name)
        ]

    def set_trainable(self, trainable: bool) -> None:
        """Train the shifts, beside those of others if there are any, or draw with them alone at the
        base's cost.
        """
        for injection in self.injections.values():
            if self.owners is None:
                injection.set_enabled(True)
                # Strengths change while shifts are live, where no weights have to be made for it.
                if not trainable:
                    self._act(injection, self.strength)
                injection.set_trainable(self.name, trainable)
                if trainable:
                    self._act(injection, 1.0)
                continue
            for _, parameter in injection.sigma_parameters(self.name):
                parameter.requires_grad_(trainable)
            if trainable:
                injection.set_active(dict.fromkeys(self.owners.names, 1.0), self.owners)
            else:
                injection.set_active({self.name: self.strength})
            injection.set_enabled(True)

    def _act(self, injection: Injection, strength: float) -> None:
        """Let the adapter alone act on a model, at a strength."""
        if injection.selection.weights != {self.name: strength}:
            injection.set_active({self.name: strength})

    @contextlib.contextmanager
    def absent(self) -> Iterator[None]:
        """While shifts are trained: let the models be the base's."""
        with contextlib.ExitStack() as stack:
            for injection in self.injections.values():
                stack.enter_context(injection.applied.paused())
            yield

    def withdraw(self) -> None:
        """Take the adapter off again, for whoever goes on using the pipeline. Idempotent."""
        for injection in self.injections.values():
            if self.name in injection.adapter_names:
                injection.remove_adapter(self.name)
        if self.owners and self.name in self.owners.names:
            self.owners.names.remove(self.name)

    def drift(self) -> float:
        """`‖δ‖ / ‖σ⁰‖` over all trained singular values."""
        norms: Any = torch._foreach_norm([p.detach() for p in self.shifts()])
        # Together to where the first is, so that a GPU is waited for once.
        here = [norm.to(norms[0].device) for norm in norms]
        return float(torch.stack(here).norm()) / self._sigma_norm

    def _initial_sigma_norm(self) -> float:
        squares = [
            shifted.basis.sigma[: shifted.deltas[self.name].numel()].double().square().sum()
            for injection in self.injections.values()
            for shifted in injection.layers.values()
            if self.name in shifted.deltas
        ]
        return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())


@contextlib.contextmanager
def rows_belong_to(subjects: Sequence[Subject | None]) -> Iterator[None]:
    """While within, models are called with a row of each of these subjects, in this order; nothing
    is done where none is trained beside others.
    """
    first = subjects[0]
    if first is None or first.owners is None:
        yield
        return
    with first.owners.given([subject.name for subject in subjects if subject]):
        yield
