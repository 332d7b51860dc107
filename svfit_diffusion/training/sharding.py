"""A frozen denoiser in parts (FSDP2, or ZeRO-3 if told so): one for each process, and in the host's
memory if wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training import zero
from svfit_diffusion.training.launch import zero_settings


def check_in_parts(
    accelerator: Accelerator, spread: bool, in_host_memory: bool, *, several: bool
) -> None:
    """Raise `ConfigError` if a denoiser cannot be in parts in a run.

    Args:
        accelerator: of the run.
        spread: whether each process is to have its own.
        in_host_memory: whether blocks are to wait there.
        several: whether subjects are trained in one pass.
    """
    if spread and accelerator.num_processes == 1:
        raise ConfigError(
            "shard_base spreads the denoiser over several processes, and there is one; start more: "
            "accelerate launch --multi_gpu --num_processes=2 … (on CPUs, too), or have its blocks "
            "in the host's memory: --group_offload"
        )
    if several:
        raise ConfigError(
            "a denoiser in parts (shard_base, group_offload) learns one subject at a time: leave "
            "that out, or --subjects"
        )
    if zero_settings() is None:
        return
    if in_host_memory:
        raise ConfigError(
            "group_offload is FSDP2's, and accelerate was told to use DeepSpeed: leave one of them "
            "out, or have its parts in the host's memory by offload_param in its configuration"
        )
    zero.check_installed()


def put_in_parts(model: nn.Module, accelerator: Accelerator, in_host_memory: bool) -> Any:
    """Leave a part of every weight in each process; of one process, all of it. A block's weights
    (under ZeRO-3, a layer's) are whole, and on the device, while it runs, forward or backward; all
    processes must run it as often.

    Shifts stay whole in each process, as they are no parameters of the model.

    Args:
        model: frozen, on any device.
        accelerator: of the run.
        in_host_memory: where the parts are, which come to the device a block at a time, the next
            while one computes; else they are on the device.

    Returns:
        Something to keep as long as the model is used.
    """
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if settings := zero_settings():
        return zero.partition(model, accelerator.device, settings)
    device = accelerator.device.type
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        here = HashStore()
        torch.distributed.init_process_group(backend, store=here, rank=0, world_size=1)
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    policy = OffloadPolicy()
    if in_host_memory:
        policy = CPUOffloadPolicy(pin_memory=device != "cpu")
    for block in outermost_blocks(model):
        fully_shard(block, mesh=mesh, offload_policy=policy)
    return fully_shard(model, mesh=mesh, offload_policy=policy)


def outermost_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's outermost lists, in order: what runs one after the other."""
    blocks: list[nn.Module] = []
    for child in model.children():
        blocks += child if isinstance(child, nn.ModuleList) else outermost_blocks(child)
    return blocks
