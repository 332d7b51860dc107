"""Guidance learned: what takes two predictions, with a prompt and without, takes one."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow_data import Batch
from .flow_model import Conditions, FlowModel
from .flow_train import Noisy

GUIDED_SHARE = 0.5
"""Part of a batch that is told a scale; the rest is told 1, which guides nothing."""


class GuidedFlow:
    """The objective: the velocity of the pictures, and on top of it what guidance adds.

    Unlike distillation it goes on learning from the pictures, so it can last as long as it pays.
    What guidance adds, the scale over 1 times the difference that the prompt makes, is told by a
    teacher that stays as it is, after "Diffusion Models without Classifier-free Guidance"
    (arXiv 2502.12154), where the model itself tells.
    """

    def __init__(self, teacher: FlowModel) -> None:
        self._teacher = teacher
        for module in teacher.modules.values():
            module.eval().requires_grad_(False)

    def __call__(self, model: FlowModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """Error of the velocity, guided by as much as the guidance embedding is told."""
        noisy = Noisy.draw(batch, generator)
        guided = int(GUIDED_SHARE * len(noisy.levels))
        noisy.guidance[guided:] = 1
        target = noisy.velocity.clone()
        target[:guided] += self.push(noisy.first(guided), batch.first(guided))
        conditions = model.encode(batch.pooled, batch.sequence)
        predicted = model.velocity(
            noisy.tokens, noisy.levels, noisy.guidance, conditions, noisy.padding
        )
        return noisy.error(predicted, target)

    @torch.no_grad()
    def push(self, noisy: Noisy, batch: Batch) -> Tensor:
        """What guidance adds to the velocity, as `Noisy.velocity`."""
        teacher, scales = self._teacher, noisy.guidance
        prompts, empty = teacher.encode(batch.pooled, batch.sequence), teacher.encode_empty()
        both = Conditions(
            torch.cat([prompts.pooled, empty.pooled.expand_as(prompts.pooled)]),
            torch.cat([prompts.text, empty.text.expand_as(prompts.text)]),
        )
        tokens, levels = (torch.cat([part, part]) for part in (noisy.tokens, noisy.levels))
        predicted = teacher.velocity(tokens, levels, torch.ones_like(levels), both, noisy.padding)
        with_prompt, without = predicted.chunk(2)
        return (scales - 1)[:, None, None] * (with_prompt - without)
