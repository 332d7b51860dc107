"""Models in training: gradients for the shifts alone, and true ones, in every precision."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from one_model import ALL, ATTENTION, CLOSE, Snapshot, dense_copy, put
from torch import Tensor, nn

from svfit_diffusion import SVFitAttnProcessor, SVFitConfig, sigma_parameters
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.live import ShiftedProjection
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.spectrum.basis import as_matrix
from svfit_diffusion.spectrum.solver import singular_basis


def loss_gradients(model: nn.Module, injection: Injection) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    model(**tiny.unet_inputs(dtype)).sample.float().square().mean().backward()
    gradients = {}
    for path, delta in injection.sigma_parameters("default"):
        assert delta.grad is not None, path
        gradients[path] = delta.grad
        delta.grad = None
    return gradients


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("zero", [True, False], ids=["zero", "shifted"])
def test_gradients_are_for_the_shifts_only_and_those_of_autograd(
    config: SVFitConfig, zero: bool
) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.0 if zero else 0.2)
    gradients = loss_gradients(unet, injection)
    assert all(parameter.grad is None for parameter in unet.parameters())

    double = dense_copy(tiny.make_tiny_unet(), injection, {"default": 1.0}).double()
    for path in gradients:
        double.get_submodule(path).weight.requires_grad_()
    double(**tiny.unet_inputs(torch.float64)).sample.square().mean().backward()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for path, gradient in gradients.items():
        basis = injection.layers[path].basis
        full = double.get_submodule(path).weight.grad.flatten(1)
        expected = torch.einsum("ro,oi,ri->r", basis.u.double(), full, basis.v.double())
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Linear(300, 300), nn.Conv2d(3, 4, 3)])
def test_what_training_does_not_use_of_a_mapped_basis_leaves_memory(layer: Any) -> None:
    released = []
    file: Any = SimpleNamespace(release=lambda: released.append(True))
    basis = replace(singular_basis(as_matrix(layer.weight.detach())), file=file)
    shifted = ShiftedLayer(layer.requires_grad_(False), basis)
    ShiftedProjection(shifted)
    assert released


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
def test_gradient_checkpointing_changes_nothing(config: SVFitConfig) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.2)
    unet.train()
    plain = loss_gradients(unet, injection)
    unet.enable_gradient_checkpointing()
    checkpointed = loss_gradients(unet, injection)
    assert all(torch.equal(plain[path], checkpointed[path]) for path in plain)


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_float32_shifts_and_gradients(
    config: SVFitConfig, base: torch.dtype
) -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, config, scale=0.2)
    exact = loss_gradients(unet, injection)
    unet.to(base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_gradients(unet, injection)
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
    first, second = (torch.cat([g[p].flatten() for p in exact]) for g in (exact, rounded))
    # bfloat16 keeps 8 bits; a dozen layers of it leave some percent.
    assert torch.dist(first, second) < 0.1 * first.norm()


@pytest.mark.parametrize("config", [ATTENTION, ALL], ids=["attention", "all"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models_train(config: SVFitConfig, dtype: torch.dtype) -> None:
    unet = tiny.make_tiny_unet().to(dtype)
    injection = put(unet, config, scale=0.2)
    gradients = loss_gradients(unet, injection)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())


def test_freezing_turns_a_live_adapter_into_a_set_one_with_the_same_output() -> None:
    unet = tiny.make_tiny_unet()
    snapshot = Snapshot(unet)
    injection = put(unet, ALL, scale=0.3)
    live = tiny.run_unet(unet)
    injection.set_trainable("default", False)
    assert not any("forward" in vars(layer) for layer in shiftable_layers(unet).values())
    assert not any(isinstance(p, SVFitAttnProcessor) for p in unet.attn_processors.values())
    assert not any(delta.requires_grad for _, delta in sigma_parameters(unet))
    torch.testing.assert_close(tiny.run_unet(unet), live, **CLOSE)
    injection.set_trainable("default", True)
    assert torch.equal(tiny.run_unet(unet), live)
    assert snapshot._read()["state dict"] == snapshot.state["state dict"]


def test_training_reaches_a_target() -> None:
    unet = tiny.make_tiny_unet()
    injection = put(unet, SVFitConfig(rank=8))
    teacher = tiny.make_tiny_unet()
    put(teacher, SVFitConfig(rank=8), scale=0.3)
    target = tiny.run_unet(teacher)
    optimizer = torch.optim.Adam([delta for _, delta in sigma_parameters(unet)], lr=0.03)
    losses = []
    for _ in range(40):
        loss = (unet(**tiny.unet_inputs()).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert injection.selection.weights == {"default": 1.0}
