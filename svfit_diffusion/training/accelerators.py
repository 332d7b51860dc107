"""Where a training run computes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    ProjectConfiguration,
    is_bf16_available,
    parse_flag_from_env,
    patch_environment,
)

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.launch import check_launch

logger = logging.getLogger(__name__)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """An accelerator for these settings.

    Raises:
        ConfigError: a precision that the machine does not compute in, or accelerate was told
            something that a training does not do.
    """
    check_launch(shard_base=config.shard_base)
    # DeepSpeed has the base alone, once that is there (`sharding`), and not what is trained.
    with patch_environment(ACCELERATE_USE_DEEPSPEED=False):
        return _plain_accelerator(config)


def _plain_accelerator(config: TrainingConfig) -> Accelerator:
    # Without a GPU accelerate joins several processes only if told that it runs on CPUs.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "accelerate launch starts a single process on a machine without GPUs, whatever "
            "--num_processes says; add --multi_gpu (it works on CPUs) or use torchrun"
        )
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision == "fp8":
        raise ConfigError(
            "accelerate was told mixed_precision fp8, in which shifts are not trained; use bf16, "
            "fp16 or no"
        )
    device = PartialState(cpu=cpu).device
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "mixed_precision fp16 needs a GPU and this machine has none; use 'no' or 'bf16'"
        )
    if precision == "bf16" and device.type != "cpu" and not is_bf16_available(ignore_tpu=True):
        raise ConfigError("mixed_precision bf16 is more than this device can; use fp16 or no")
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
