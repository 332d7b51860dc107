"""Optimizer and schedule of a run, and how its gradients are put together."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.config import TrainingConfig


def optimizer_and_schedule(
    config: TrainingConfig,
    accelerator: Accelerator,
    shifts: dict[str, list[nn.Parameter]],
    denoiser: str,
    total_steps: int,
) -> tuple[Any, Any]:
    """What moves the shifts, made ready by accelerate.

    Args:
        config: which, and how fast.
        accelerator: of the run.
        shifts: of each component.
        denoiser: the component that `learning_rate` is for; the others are text encoders.
        total_steps: optimizer steps of the whole run.

    Raises:
        ConfigError: the optimizer's package is not installed.
    """
    scale = global_batch(config, accelerator) if config.scale_lr else 1
    text_rate = config.text_encoder_lr or config.learning_rate
    groups = [
        {
            "params": parameters,
            "lr": (config.learning_rate if component == denoiser else text_rate) * scale,
        }
        for component, parameters in shifts.items()
    ]
    optimizer = accelerator.prepare(make_optimizer(config, groups))
    scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    return optimizer, scheduler


def global_batch(config: TrainingConfig, accelerator: Accelerator) -> int:
    """Photos of one optimizer step, over all processes."""
    per_process = config.train_batch_size * config.gradient_accumulation_steps
    return per_process * accelerator.num_processes


def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Average gradients over processes: one message of one number per trained value.

    Shifts that nothing was computed with, such as those of a vision tower, have none anywhere.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes == 1 or not gradients:
        return
    flat = accelerator.reduce(torch.cat(gradients), "mean")
    for gradient in gradients:
        gradient.copy_(flat[: gradient.numel()])
        flat = flat[gradient.numel() :]


def make_optimizer(config: TrainingConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The configured optimizer over parameter groups, each with its `lr`.

    Raises:
        ConfigError: its package is not installed.
    """
    common: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "prodigy":
        prodigy = _import_or_explain("prodigyopt", "optimizer prodigy")
        return prodigy.Prodigy(groups, safeguard_warmup=True, use_bias_correction=True, **common)
    if config.use_8bit_adam:
        return _import_or_explain("bitsandbytes", "use_8bit_adam").optim.AdamW8bit(groups, **common)
    return torch.optim.AdamW(groups, **common)


def _import_or_explain(package: str, setting: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs the package {package}: pip install {package}"
        ) from error
