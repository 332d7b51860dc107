"""A core between the singular vectors: `W' = W + U M Vᵀ` with few entries in M.

SVFit's δ is the diagonal of M alone. Here as many entries are trained: wherever their gradients at
the base are largest, with their places kept beside their values, or all of a small square between
the leading vectors (LoRA-XS, arXiv 2405.17604).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import isqrt
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapting import Adapted, Models, attention_values
from benchmarks.rules import Vectors, chosen
from svfit_diffusion.adapters.targets import select_targets

Layers = Mapping[str, nn.Linear]


def sparse_core(models: Models, steps: int) -> Adapted:
    """Train as many entries of the cores of all Linear layers as attention has singular values."""
    layers = _linear_layers(models, "all")
    cores = _Cores(layers)
    rule = chosen(Vectors(cores.parameters, [], attention_values(models)), steps)
    return replace(cores.adapted(_with_places), after_step=rule)


def leading_core(models: Models, steps: int) -> Adapted:
    """Train squares between the leading vectors of attention's weights, in all as many entries as
    these have singular values.
    """
    layers = _linear_layers(models, "attention")
    return _Cores(layers, isqrt(attention_values(models) // len(layers))).adapted(_as_they_are)


class _Cores:
    """Cores in the place of layers' own forward passes.

    Args:
        layers: frozen, by path.
        rank: how many leading vectors they are between; all without.
    """

    def __init__(self, layers: Layers, rank: int | None = None) -> None:
        self._layers = layers
        self._bases = {path: _vectors(layer.weight, rank) for path, layer in layers.items()}
        self._cores = {
            path: nn.Parameter(torch.zeros(u.shape[1], v.shape[0], device=u.device))
            for path, (u, v) in self._bases.items()
        }
        self.parameters = list(self._cores.values())
        for path, layer in layers.items():
            u, v = self._bases[path]
            vars(layer)["forward"] = partial(_forward, layer, u, v, self._cores[path])

    def adapted(self, stored: Callable[[str, Tensor], dict[str, Tensor]]) -> Adapted:
        """What a benchmark trains, with what is stored of a path's core."""

        def save(folder: Path) -> None:
            tensors = {
                name: tensor
                for path, core in self._cores.items()
                for name, tensor in stored(path, core.detach()).items()
            }
            safetensors.torch.save_file(tensors, folder / "core.safetensors")

        return Adapted(self.parameters, save, self._merge)

    @torch.no_grad()
    def _merge(self) -> None:
        for path, layer in self._layers.items():
            del vars(layer)["forward"]
            u, v = self._bases[path]
            layer.weight += (u @ self._cores[path] @ v).to(layer.weight.dtype)


def _linear_layers(models: Models, target: str) -> Layers:
    return {
        f"{component}.{path}": layer
        for component, model in models.items()
        for path, layer in select_targets(model, target).items()
        if isinstance(layer, nn.Linear)
    }


def _with_places(path: str, core: Tensor) -> dict[str, Tensor]:
    """The entries that are not zero, and where they are in the flattened core."""
    flat = core.flatten()
    places = flat.nonzero()[:, 0]
    if not len(places):
        return {}
    return {f"{path}.values": flat[places], f"{path}.places": places.to(torch.int32)}


def _as_they_are(path: str, core: Tensor) -> dict[str, Tensor]:
    return {f"{path}.values": core}


def _vectors(weight: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """`U` `(d_out, r)` and `Vᵀ` `(r, d_in)`, float32."""
    u, _, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return u[:, :rank].float(), v[:rank].float()


def _forward(layer: nn.Linear, u: Tensor, v: Tensor, core: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight + u @ core @ v, layer.bias)
