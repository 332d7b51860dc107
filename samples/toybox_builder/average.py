"""Moving averages of the weights, which draw better than the weights themselves."""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """Exponential moving average of parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._decay = decay
        self._parameters = parameters
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Blend the present weights in; the window grows with the first steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        present = [parameter.detach() for parameter in self._parameters]
        torch._foreach_lerp_(self.values, present, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the present weights."""
        for parameter, value in zip(self._parameters, self.values, strict=True):
            present = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(present)
