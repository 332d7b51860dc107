"""A few entries of a core between the singular vectors: `W' = W + U M Vᵀ` with a sparse M.

SVFit's δ is the diagonal of M alone. Here as many entries are trained, wherever their gradients at
the base are largest; their places have to be kept beside their values.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapting import Adapted, Models, attention_values
from benchmarks.rules import Vectors, chosen
from svfit_diffusion.adapters.targets import select_targets


def sparse_core(models: Models, steps: int) -> Adapted:
    """Train as many entries of the cores of all Linear layers as attention has singular values."""
    layers = {
        f"{component}.{path}": layer
        for component, model in models.items()
        for path, layer in select_targets(model, "all").items()
        if isinstance(layer, nn.Linear)
    }
    bases = {path: _vectors(layer.weight) for path, layer in layers.items()}
    cores = {
        path: nn.Parameter(torch.zeros(u.shape[1], v.shape[0], device=u.device))
        for path, (u, v) in bases.items()
    }
    for path, layer in layers.items():
        vars(layer)["forward"] = partial(_forward, layer, *bases[path], cores[path])
    parameters = list(cores.values())
    rule = chosen(Vectors(parameters, [], attention_values(models)), steps)

    def save(folder: Path) -> None:
        tensors = {}
        for path, core in cores.items():
            flat = core.detach().flatten()
            places = flat.nonzero()[:, 0]
            if len(places):
                tensors[f"{path}.values"] = flat[places]
                tensors[f"{path}.places"] = places.to(torch.int32)
        safetensors.torch.save_file(tensors, folder / "sparse_core.safetensors")

    @torch.no_grad()
    def merge() -> None:
        for path, layer in layers.items():
            del vars(layer)["forward"]
            u, v = bases[path]
            layer.weight += (u @ cores[path] @ v).to(layer.weight.dtype)

    return Adapted(parameters, save, merge, rule)


def _vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`U` `(d_out, d)` and `Vᵀ` `(d, d_in)`, float32."""
    u, _, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return u.float(), v.float()


def _forward(layer: nn.Linear, u: Tensor, v: Tensor, core: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight + u @ core @ v, layer.bias)
