"""Adapters on one tiny model, what they should compute, and whether they left no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from svfit_diffusion import SVFitConfig, inject
from svfit_diffusion.adapters.injection import Injection

ATTENTION = SVFitConfig()
ALL = SVFitConfig(target="all")
# Largest difference of two float32 ways to one output, over a dozen layers.
CLOSE = {"rtol": 0, "atol": 2e-5}
MODELS: dict[str, tuple[Callable[[], Any], SVFitConfig]] = {
    "unet-attention": (tiny.make_tiny_unet, ATTENTION),
    "unet-all": (tiny.make_tiny_unet, ALL),
    "unet-conv": (tiny.make_tiny_unet, SVFitConfig(rank=0.5, target=("conv1", "conv_in"))),
    "text-attention": (tiny.make_tiny_text_encoder, ATTENTION),
    "text-all": (tiny.make_tiny_text_encoder, ALL),
}
EVERY_MODEL = pytest.mark.parametrize("kind", MODELS)
EITHER = pytest.mark.parametrize("trainable", [True, False], ids=["live", "set"])


def put(
    model: nn.Module,
    config: SVFitConfig | None = None,
    name: str = "default",
    *,
    scale: float = 0.0,
    trainable: bool = True,
    seed: int = 0,
) -> Injection:
    """Inject, with normal random shifts of the given scale."""
    injection = inject(model, config, name, trainable=trainable, show_progress=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, delta in injection.sigma_parameters(name):
            delta.copy_(torch.randn(delta.shape, generator=generator) * scale)
    injection.select(injection.selection)
    return injection


def dense_copy(model: nn.Module, injection: Injection, weights: dict[str, float]) -> Any:
    """A copy of an unadapted model whose weights hold the shifts, computed apart in float64."""
    base, model = model, copy.deepcopy(model)
    for name, weight in weights.items():
        for path, delta in injection.sigma_parameters(name):
            layer = model.get_submodule(path)
            matrix = base.get_submodule(path).weight.half().double().flatten(1)
            # A basis is kept in float16, and its rounding is part of what it is.
            u, vh = (t.half().double() for t in torch.linalg.svd(matrix, full_matrices=False)[::2])
            shift = delta.detach().double() * weight
            rank = shift.numel()
            update = (u[:, :rank] * shift) @ vh[:rank]
            layer.weight.data += update.reshape(layer.weight.shape).to(layer.weight.dtype)
    return model


class Snapshot:
    """Everything about a model that adapters must give back, and a check that they did."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = self._read()
        self.values = {name: t.clone() for name, t in model.state_dict().items()}
        self.output = tiny.run_model(model)

    def _read(self) -> Any:
        return {
            "state dict": {n: id(t) for n, t in self.model.named_parameters()},
            "keys": list(self.model.state_dict()),
            "modules": {n: id(m) for n, m in self.model.named_modules()},
            "hooks": sum(len(m._forward_pre_hooks) for m in self.model.modules()),
            "attributes": {
                n: {k: id(v) for k, v in vars(m).items() if k != "training"}
                for n, m in self.model.named_modules()
            },
        }

    def check(self) -> None:
        assert self._read() == self.state
        assert all(torch.equal(self.values[n], t) for n, t in self.model.state_dict().items())
        assert torch.equal(tiny.run_model(self.model), self.output)
