"""Adapters handled under `torch.inference_mode()`, in part or whole, and gradients afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from merged import check_output, check_switching, load, merged, tiny_adapter, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline, unet_inputs
from torch import Tensor, nn

from svfit_diffusion import inject
from svfit_diffusion.adapters.injection import Injection


def input_gradient(unet: Any) -> Tensor:
    """Of the sum of squares of the UNet's output, in its noisy latents."""
    inputs = unet_inputs()
    sample = inputs["sample"].requires_grad_()
    unet(**inputs).sample.square().sum().backward()
    return sample.grad


def expected_gradient() -> Tensor:
    return input_gradient(merged(make_tiny_pipeline().unet, tiny_adapter().deltas["unet"]))


def test_all_of_it_inside() -> None:
    with torch.inference_mode():
        check_switching(load(make_tiny_pipeline()), tiny_pictures())


STEPS: dict[str, Callable[[Any], Any]] = {
    "load": load,
    "load and draw": lambda pipe: run_pipeline(load(pipe)),
    "switch": lambda pipe: (load(pipe).disable_svfit(), pipe.enable_svfit()),
    "fuse": lambda pipe: load(pipe).fuse_svfit(),
    "second": lambda pipe: (load(load(pipe), "b"), pipe.set_svfit_adapters("a")),
}


@pytest.mark.parametrize("step", STEPS)
def test_gradients_outside_after_a_step_inside(step: str) -> None:
    pipe = make_tiny_pipeline()
    base = input_gradient(pipe.unet)
    with torch.inference_mode():
        STEPS[step](pipe)
    check_output(input_gradient(pipe.unet), base, expected_gradient())
    with torch.inference_mode():
        pipe.unload_svfit_weights()
    assert torch.equal(input_gradient(pipe.unet), base)
    assert torch.equal(run_pipeline(pipe), tiny_pictures().base)


def shift_gradients(unet: nn.Module) -> dict[str, Tensor]:
    unet.zero_grad()
    unet(**unet_inputs(next(unet.parameters()).dtype)).sample.square().sum().backward()
    shifts = dict(Injection.of(unet).sigma_parameters("default"))
    return {path: shift.grad for path, shift in shifts.items() if shift.grad is not None}


def test_injecting_inside_and_training_outside() -> None:
    unets = [make_tiny_pipeline().unet for _ in range(2)]
    for unet, inside in zip(unets, (True, False), strict=True):
        with torch.inference_mode(inside):
            inject(unet, show_progress=False)
    found, expected = (shift_gradients(unet) for unet in unets)
    assert len(found) == 32
    for path, gradient in found.items():
        assert gradient.any()
        assert torch.equal(gradient, expected[path])


@pytest.mark.parametrize("moved", [False, True])
def test_validating_inside_between_steps_of_training(moved: bool) -> None:
    unet = make_tiny_pipeline().unet
    injection = inject(unet, show_progress=False)
    if moved:  # so that the first pass brings the basis along
        unet.double()
    with torch.inference_mode():
        unet(**unet_inputs(next(unet.parameters()).dtype))
    assert len(shift_gradients(unet)) == 32
    with torch.inference_mode():
        injection.set_trainable("default", False)
        injection.set_trainable("default", True)
    assert len(shift_gradients(unet)) == 32


@pytest.mark.parametrize("inside", ["all", "the picture"])
def test_a_mixed_batch_inside(inside: str) -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    prompts = ["a photo of a dog"] * 2
    seeds = [torch.Generator().manual_seed(3) for _ in prompts]
    with torch.inference_mode(inside == "all"), pipe.svfit_adapters_per_prompt(["a", None]):
        with torch.inference_mode():
            adapted, base = run_pipeline(pipe, prompt=prompts, generator=seeds)
        with torch.inference_mode(False):
            gradient = input_gradient(pipe.unet)
    torch.testing.assert_close(adapted, expected.adapted[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(base, expected.base[0], rtol=0, atol=1e-5)
    base_gradient = input_gradient(make_tiny_pipeline().unet)
    check_output(gradient[:1], base_gradient[:1], expected_gradient()[:1])
    torch.testing.assert_close(gradient[1:], base_gradient[1:], rtol=0, atol=1e-4)
    check_switching(pipe, expected)
