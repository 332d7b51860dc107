"""Optimizer and schedule of a run, and how its gradients are put together."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn
from transformers.optimization import Adafactor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.processes import together


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and how it moves.

    Attributes:
        name: `AdamW`, `adafactor` or `prodigy`.
        in_8_bit: AdamW of bitsandbytes.
        betas: β₁ and β₂.
        weight_decay: pulls shifts back to the base model.
        epsilon: ε.
    """

    name: str
    in_8_bit: bool
    betas: tuple[float, float]
    weight_decay: float
    epsilon: float

    def check(self) -> None:
        """Raise `ConfigError` if the optimizer's package is not installed."""
        if self.name == "prodigy":
            _import_or_explain("prodigyopt", "optimizer prodigy")
        elif self.in_8_bit:
            _import_or_explain("bitsandbytes", "use_8bit_adam")


@dataclass(frozen=True)
class ScheduleSettings:
    """How the rates change; names and meanings are `diffusers.optimization.get_scheduler`'s.

    Attributes:
        name: of the schedule.
        warmup_steps: optimizer steps over which the rates rise.
        cycles: hard restarts.
        power: of polynomial.
    """

    name: str
    warmup_steps: int
    cycles: int
    power: float

    def over(self, optimizer: Any, total_steps: int) -> Any:
        """The schedule of an optimizer over so many steps."""
        return get_scheduler(
            self.name,
            optimizer=optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=total_steps,
            num_cycles=self.cycles,
            power=self.power,
        )


def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Average gradients over processes: one message of one number per trained value.

    Shifts that nothing was computed with, such as those of a vision tower, have none anywhere.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or not gradients:
        return
    with together(accelerator):
        flat = accelerator.reduce(torch.cat(gradients), "mean")
    for gradient in gradients:
        gradient.copy_(flat[: gradient.numel()])
        flat = flat[gradient.numel() :]


def make_optimizer(
    settings: OptimizerSettings, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """An optimizer over parameter groups, each with its `lr`.

    Raises:
        ConfigError: its package is not installed.
    """
    common: dict[str, Any] = {
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
        "eps": settings.epsilon,
    }
    if settings.name == "prodigy":
        prodigy = _import_or_explain("prodigyopt", "optimizer prodigy")
        return prodigy.Prodigy(groups, safeguard_warmup=True, use_bias_correction=True, **common)
    if settings.name == "adafactor":
        # Neither its own rate nor one in proportion to the parameters, which begin at zero.
        return Adafactor(
            groups,
            weight_decay=settings.weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
    if settings.in_8_bit:
        return _import_or_explain("bitsandbytes", "use_8bit_adam").optim.AdamW8bit(groups, **common)
    return torch.optim.AdamW(groups, **common)


def _import_or_explain(package: str, setting: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs the package {package}: pip install {package}"
        ) from error
