"""What SVFit may do after each optimizer step: budgets, and ideas for a better front.

A rule is given the trained vectors before the first step, and changes them after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from svfit_diffusion.training.budget import Pruner, largest

AfterStep = Callable[[int], None]
"""Called with the number of steps done."""

_LOOKED_ON = 5
"""Steps in which gradients are looked at before entries are chosen by them."""


@dataclass(frozen=True)
class Vectors:
    """What SVFit trains.

    Attributes:
        deltas: the shift of each layer, zero at the start.
        sigma: the singular values beneath, largest first, shaped alike.
        attention_values: how many singular values the models' attention has.
        needs: mean squared gradient of the base's own loss by each shift, shaped alike: how much
            what the base knows needs that value to stay; filled before the first step where
            a method wants it.
    """

    deltas: list[nn.Parameter]
    sigma: list[Tensor]
    attention_values: int
    needs: list[Tensor] = field(default_factory=list)


Rule = Callable[[Vectors, int], AfterStep]
"""Given also the number of steps to come."""


def budget(count: int | None = None, share: float = 1.0) -> Rule:
    """Keep the most useful entries of all; if not so many, as many as attention has or a share."""

    def rule(vectors: Vectors, steps: int) -> AfterStep:
        kept = count or round(share * vectors.attention_values)
        pruner = Pruner(vectors.deltas, kept, steps)

        def after_step(step: int) -> None:
            pruner.weigh()
            pruner.prune(step)

        return after_step

    return rule


def chosen(vectors: Vectors, steps: int) -> AfterStep:
    """Train as many entries as attention has, those with the largest gradients at the base."""
    deltas = vectors.deltas
    sizes = [delta.numel() for delta in deltas]
    seen = torch.zeros(sum(sizes), device=deltas[0].device)
    masks: list[Tensor] = []

    @torch.no_grad()
    def after_step(step: int) -> None:
        if step <= _LOOKED_ON:
            seen.add_(torch.cat([_gradient(delta).abs().flatten() for delta in deltas]))
            for delta in deltas:
                delta.zero_()
            return
        if not masks:
            count = min(vectors.attention_values, seen.numel())
            masks.extend(largest(seen, count).split(sizes))
        for delta, mask in zip(deltas, masks, strict=True):
            delta.mul_(mask.view_as(delta))

    return after_step


def part(which: str) -> Rule:
    """Train half of each spectrum: its `top`, its `bottom`, or every second value, `spread`."""

    def mask(delta: Tensor) -> Tensor:
        place = torch.arange(delta.numel(), device=delta.device)
        half = (delta.numel() + 1) // 2
        masks = {"top": place < half, "bottom": place >= half, "spread": place % 2 == 0}
        return masks[which].float()

    return lambda vectors, steps: _scaled(
        vectors.deltas, lambda: [mask(delta) for delta in vectors.deltas]
    )


def rates_by_sigma(power: float) -> Rule:
    """Learning rates proportional to a power of the singular value, of mean 1 in each layer."""

    def scale(sigma: Tensor) -> Tensor:
        powers: Tensor = sigma**power
        return powers / powers.mean()

    return lambda vectors, steps: _scaled(
        vectors.deltas, lambda: [scale(sigma) for sigma in vectors.sigma]
    )


def careful(vectors: Vectors, steps: int) -> AfterStep:
    """Learning rates that fall with the base's need of an entry, `2 / (1 + need / mean)`."""
    return _scaled(vectors.deltas, lambda: [2 / (1 + need) for need in _relative(vectors.needs)])


def anchored(strength: float) -> Rule:
    """Draw entries back to the base the more it needs them, as elastic weight consolidation does
    (arXiv 1612.00796), apart from the gradient, as weight decay is.
    """

    def rule(vectors: Vectors, steps: int) -> AfterStep:
        @torch.no_grad()
        def after_step(step: int) -> None:
            for delta, need in zip(vectors.deltas, _relative(vectors.needs), strict=True):
                delta.div_(1 + strength * need)

        return after_step

    return rule


def averaged(decay: float) -> Rule:
    """End with the running mean of the entries over the steps."""

    def rule(vectors: Vectors, steps: int) -> AfterStep:
        means = [torch.zeros_like(delta) for delta in vectors.deltas]

        @torch.no_grad()
        def after_step(step: int) -> None:
            for delta, mean in zip(vectors.deltas, means, strict=True):
                mean.lerp_(delta, 1 - min(decay, step / (step + 10)))
                if step == steps:
                    delta.copy_(mean)

        return after_step

    return rule


def leading_by_noise(deltas: Sequence[nn.Parameter], noise: float) -> None:
    """Leave gradients of the leading part of each spectrum alone, a quarter of it at pure noise and
    all of it at none (the ranks of T-LoRA, arXiv 2507.05964).

    Examples come with falling noise, so that what one leaves the next leaves too.
    """
    for delta in deltas:
        if delta.grad is not None:
            delta.grad[round(delta.numel() * (1 - 0.75 * noise)) :] = 0


def _scaled(
    deltas: Sequence[nn.Parameter], scales_of_entries: Callable[[], Sequence[Tensor]]
) -> AfterStep:
    """Steps of each entry, times its scale."""
    before = [torch.zeros_like(delta) for delta in deltas]
    scales: list[Tensor] = []

    @torch.no_grad()
    def after_step(step: int) -> None:
        if not scales:
            scales.extend(scale.to(deltas[0].device) for scale in scales_of_entries())
        for delta, held, scale in zip(deltas, before, scales, strict=True):
            held.addcmul_(delta - held, scale)
            delta.copy_(held)

    return after_step


def _relative(needs: Sequence[Tensor]) -> list[Tensor]:
    """Times such that their mean over all is 1."""
    mean = torch.cat(list(needs)).mean()
    return [need / mean for need in needs]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
