"""A frozen denoiser of which each process holds a part (DeepSpeed's ZeRO-3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from svfit_diffusion.errors import ConfigError

_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def check_installed() -> None:
    """Raise `ConfigError` if DeepSpeed cannot be imported."""
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"accelerate was told to use DeepSpeed, which cannot be imported ({error}): pip "
            f"install deepspeed, or leave it out, as --shard_base alone spreads the denoiser by "
            f"FSDP2"
        ) from error


def partition(model: nn.Module, device: torch.device, settings: Mapping[str, object]) -> Any:
    """Leave a part of every weight in each process; a layer's weights are whole while it runs.

    There is no optimizer in it: no parameter of the model is trained.

    Args:
        model: frozen, on any device, and in one precision.
        device: where the process computes.
        settings: DeepSpeed's `zero_optimization`, of stage 3.

    Returns:
        What gathers the weights, as long as it is kept.
    """
    import deepspeed  # a package that few have, and slow to import

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # it wants to know, and nothing follows from it
        "zero_optimization": dict(settings),
        "steps_per_print": float("inf"),
    }
    precision = next(model.parameters()).dtype
    if precision in _PRECISIONS:
        config[_PRECISIONS[precision]] = {"enabled": True}
    # First, weight after weight: an engine moves a model that is whole to the device as such.
    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=precision)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine
