"""Distillation of guidance: what took two predictions with a prompt and without takes one."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow_data import Batch
from .flow_model import Conditions, FlowModel
from .flow_train import Noisy

FROZEN = ("pooled", "sequence")
"""The text encoders: the teacher's speak for both."""


def guided(with_prompt: Tensor, without: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance of predictions `(n, tokens, width)` by scales `(n,)`."""
    return without + scales[:, None, None] * (with_prompt - without)


class Distillation:
    """The objective: at every scale that the guidance embedding is told, predict as guided."""

    def __init__(self, teacher: FlowModel) -> None:
        self._teacher = teacher
        for module in teacher.modules.values():
            module.eval().requires_grad_(False)

    def __call__(self, model: FlowModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """Error against the teacher's guided velocity."""
        noisy = Noisy.draw(batch, generator)
        with torch.no_grad():
            conditions = self._teacher.encode(batch.pooled, batch.sequence)
            target = self._target(noisy, conditions)
        predicted = model.velocity(
            noisy.tokens, noisy.levels, noisy.guidance, conditions, noisy.padding
        )
        return noisy.error(predicted, target)

    def _target(self, noisy: Noisy, conditions: Conditions) -> Tensor:
        teacher, count = self._teacher, len(noisy.levels)
        empty = teacher.encode(*(t.to(noisy.levels.device) for t in teacher.tokenise([""])))
        both = Conditions(
            torch.cat([conditions.pooled, empty.pooled.expand(count, -1)]),
            torch.cat([conditions.text, empty.text.expand(count, -1, -1)]),
        )
        tokens, levels, scales = (
            torch.cat([part, part]) for part in (noisy.tokens, noisy.levels, noisy.guidance)
        )
        with_prompt, without = teacher.velocity(tokens, levels, scales, both, noisy.padding).chunk(
            2
        )
        return guided(with_prompt, without, noisy.guidance)
