"""A frozen denoiser of which each process holds a part (FSDP2, or ZeRO-3 if told so)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training import zero
from svfit_diffusion.training.launch import zero_settings


def check_shardable(accelerator: Accelerator, *, several: bool) -> None:
    """Raise `ConfigError` if a denoiser cannot be spread over the processes of a run.

    Args:
        accelerator: of the run.
        several: whether subjects are trained in one pass.
    """
    if accelerator.num_processes == 1:
        raise ConfigError(
            "shard_base spreads the denoiser over several processes, and there is one; start more: "
            "accelerate launch --multi_gpu --num_processes=2 … (on CPUs, too)"
        )
    if several:
        raise ConfigError("shard_base trains one subject at a time: leave it out, or --subjects")
    if zero_settings():
        zero.check_installed()


def shard(model: nn.Module, accelerator: Accelerator) -> Any:
    """Leave a part of every weight in each process. A block's weights (under ZeRO-3, a layer's) are
    whole while it runs, forward or backward; all processes must run it as often.

    Shifts stay whole in each process, as they are no parameters of the model.

    Args:
        model: frozen, on any device; its parts go to that of the run.
        accelerator: of the run.

    Returns:
        Something to keep as long as the model is used.
    """
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if settings := zero_settings():
        return zero.partition(model, accelerator.device, settings)
    mesh = init_device_mesh(accelerator.device.type, (torch.distributed.get_world_size(),))
    for block in outermost_blocks(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def outermost_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's outermost lists, in order: what runs one after the other."""
    blocks: list[nn.Module] = []
    for child in model.children():
        blocks += child if isinstance(child, nn.ModuleList) else outermost_blocks(child)
    return blocks
