"""What a training run starts from: accelerator, base model, optimizer."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, parse_flag_from_env
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from svfit_diffusion.adapters import components
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.config import TrainingConfig

logger = logging.getLogger(__name__)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """An accelerator for these settings.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    # Without a GPU accelerate joins several processes only if told that it runs on CPUs.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "accelerate launch starts a single process on a machine without GPUs, whatever "
            "--num_processes says; add --multi_gpu (it works on CPUs) or use torchrun"
        )
    device = PartialState(cpu=cpu).device
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision fp16 needs a GPU and this machine has none; use 'no' or 'bf16'"
        )
    # accelerate keeps the precision of a process's first accelerator; a process may train again.
    AcceleratorState._reset_state()
    output = Path(config.output_dir)
    return Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output), logging_dir=str(output / config.logging_dir)
        ),
    )


def load_base(config: TrainingConfig) -> Any:
    """The base pipeline of a run, in float32 so that the basis is computed from full precision.

    Raises:
        ConfigError: it cannot be loaded.
    """
    source = config.pretrained_model_name_or_path
    if not source:
        raise ConfigError("pretrained_model_name_or_path is missing: a folder or a hub id")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source,
            revision=config.revision,
            variant=config.variant,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load base model {source!r}: {error}") from error
    for model in components.models_of(pipe).values():
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            model.float()
    if config.enable_xformers_memory_efficient_attention:
        pipe.enable_xformers_memory_efficient_attention()
    return pipe


def check_base(pipe: Any) -> None:
    """Raise `ConfigError` unless `pipe` is a text-to-image Stable Diffusion 1.x or 2.x."""
    if not isinstance(pipe, StableDiffusionPipeline):
        raise ConfigError(
            f"training supports Stable Diffusion 1.x and 2.x, got a {type(pipe).__name__}"
        )
    channels, latent = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels != latent:
        raise ConfigError(
            f"the base model's UNet takes {channels} channels, its latents have {latent}: train on "
            f"the text-to-image base; the adapter then works on its inpainting pipelines too"
        )


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
