"""Training while a model's blocks are offloaded by diffusers' group offload."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import make_tiny_unet, unet_inputs
from torch import Tensor, nn

from svfit_diffusion import StateError, SVFitConfig, inject, sigma_parameters
from svfit_diffusion.adapters.injection import Injection

CPU = torch.device("cpu")


def make_unet(offload_type: str | None = None, checkpointing: bool = False) -> Any:
    unet = make_tiny_unet()
    if offload_type:
        unet.enable_group_offload(
            onload_device=CPU,
            offload_device=CPU,
            offload_type=offload_type,
            num_blocks_per_group=1,
        )
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    return unet


def shifted(unet: Any, target: str = "attention") -> Any:
    inject(unet, SVFitConfig(target=target), show_progress=False)
    generator = torch.Generator().manual_seed(0)
    for _, delta in sigma_parameters(unet):
        delta.data.copy_(torch.randn(delta.shape, generator=generator) * 0.3)
    return unet.requires_grad_(False)


def gradients(unet: Any, between: Any = lambda: None) -> dict[str, Tensor]:
    loss = unet(**unet_inputs()).sample.square().sum()
    between()
    loss.backward()
    return {path: delta.grad for path, delta in sigma_parameters(unet)}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        assert gradient.any()
        assert torch.equal(found[path], gradient), path


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_without_offloading(checkpointing: bool) -> None:
    expected = gradients(shifted(make_unet()))
    check_equal(gradients(shifted(make_unet("block_level", checkpointing))), expected)
    unet = shifted(make_unet(None, checkpointing))  # and offloaded once the adapter is on
    unet.enable_group_offload(CPU, CPU, "block_level", num_blocks_per_group=1)
    check_equal(gradients(unet), expected)


def test_the_backward_pass_finds_the_memory_of_the_forward_pass() -> None:
    """Offloading gives a parameter other memory once its block has run."""
    expected = gradients(shifted(make_unet()))
    unet = shifted(make_unet())

    def offload() -> None:
        for module in unet.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = torch.full_like(module.weight, torch.nan)

    check_equal(gradients(unet, between=offload), expected)


def test_leaves_that_are_offloaded_are_refused() -> None:
    unet = make_unet("leaf_level")
    with pytest.raises(StateError, match=r"leaf-level offload.*enable_model_cpu_offload"):
        shifted(unet)
    assert Injection.find(unet) is None
