"""Muon: momentum whose matrices are orthogonalised before they are applied."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, over a batch.

    It runs on the Gram matrices, which costs far less than on the wide matrices of convolutions:
    the iterates are polynomials of the Gram matrix times the start, and polynomials commute.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.size(1) > matrices.size(2)
    start = matrices.mT if tall else matrices
    start = start / (start.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = start @ start.mT
    identity = torch.eye(gram.size(1), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    result = product @ start
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for weights of two or more dimensions."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        steps: int = 4,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "steps": steps,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight; equal shapes are orthogonalised in one batch."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rows = parameter.shape[0]
                    by_shape[rows, parameter.numel() // rows].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                weights, buffers = list[Tensor](parameters), list(map(self._momentum, parameters))
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
                updates = torch.stack([update.reshape(rows, columns) for update in nesterov])
                directions = [
                    direction.reshape(parameter.shape)
                    for direction, parameter in zip(
                        orthogonalise(updates, group["steps"]), parameters, strict=True
                    )
                ]
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, directions, alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


OUTER = "embeddings|conv_in|conv_out"
"""Pattern of the names of weights that are no matrices inside a network."""


def split_optimizers(
    modules: Iterable[nn.Module],
    muon_rate: float,
    adam_rate: float,
    outer: str = OUTER,
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for embeddings, ends and vectors."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.ndim >= 2 and not re.search(outer, name)
            (matrices if is_matrix else others).append(parameter)
    muon = Muon(matrices, lr=muon_rate)
    adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer, rate in ((muon, muon_rate), (adam, adam_rate)):
        for group in optimizer.param_groups:
            group["peak_lr"] = rate
    return [muon, adam]
