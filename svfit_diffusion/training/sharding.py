"""A frozen denoiser in parts (FSDP2): one for each process, and in the host's memory if wanted."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from svfit_diffusion.errors import ConfigError


def check_in_parts(accelerator: Accelerator, spread: bool, *, several: bool) -> None:
    """Raise `ConfigError` if a denoiser cannot be in parts in a run.

    Args:
        accelerator: of the run.
        spread: whether each process is to have its own.
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


def put_in_parts(model: nn.Module, accelerator: Accelerator, in_host_memory: bool) -> None:
    """Leave a part of every weight in each process; of one process, all of it. A block's weights
    are whole, and on the device, while it runs, forward or backward; all processes must run it as
    often.

    Shifts stay whole in each process, as they are no parameters of the model.

    Args:
        model: frozen, on any device.
        accelerator: of the run.
        in_host_memory: where the parts are, which come to the device a block at a time, the next
            while one computes; else they are on the device.
    """
    assert not any(parameter.requires_grad for parameter in model.parameters())
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
    fully_shard(model, mesh=mesh, offload_policy=policy)


def outermost_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's outermost lists, in order: what runs one after the other."""
    blocks: list[nn.Module] = []
    for child in model.children():
        blocks += child if isinstance(child, nn.ModuleList) else outermost_blocks(child)
    return blocks
