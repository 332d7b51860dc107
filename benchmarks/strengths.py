"""A trained model at any strength: its weights on a straight line from the base's to its own.

For SVFit, LoRA and full fine-tuning that is what strength means; the others (rotations) have none
of their own, so all of them are measured along the same line.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.adapting import Models

_WRAPPED = ".base_layer"
"""What PEFT puts into the path of a layer that it wraps."""


class Line:
    """The weights of some models before and after they were trained.

    Args:
        models: the models, still as they were before.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._before = {path: weight.detach().clone() for path, weight in _weights(models).items()}
        self._after: dict[str, Tensor] = {}

    def close(self) -> None:
        """Take the models as they are now, all of what was learned in their weights, as trained."""
        self._after = {path: w.detach().clone() for path, w in self._learned().items()}

    @torch.no_grad()
    def put(self, strength: float) -> None:
        """Give the models the weights at a strength: 0 is before, 1 after."""
        for path, weight in self._learned().items():
            weight.data = torch.lerp(self._before[path], self._after[path], strength)

    def _learned(self) -> Mapping[str, nn.Parameter]:
        weights = _weights(self._models)
        return {path: weights[path] for path in self._before}


def _weights(models: Models) -> dict[str, nn.Parameter]:
    """The parameters by component and path, as if nothing were wrapped."""
    return {
        f"{component}.{path.replace(_WRAPPED, '')}": weight
        for component, model in models.items()
        for path, weight in model.named_parameters()
    }
