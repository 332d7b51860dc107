"""A global budget: train every singular value at first, keep the most useful ones in the end.

The importance of an entry δᵢ is a running mean of `|δᵢ · ∂L/∂δᵢ|`, to first order the change of the
loss if the entry were set back to zero. Entries of all layers and models compete. As in AdaLoRA
(arXiv 2303.10512), their number falls along a cubic from all to the budget while training goes on,
and the survivors have the rest of the steps to make up for those that went.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svfit_diffusion.errors import ConfigError

PRUNING_STARTS = 0.1
PRUNING_ENDS = 0.6
"""Shares of all steps between which the number of live entries falls."""

_DECAY = 0.95  # of the running mean, per step


def live_entries(step: int, total_steps: int, everything: int, budget: int) -> int:
    """How many entries live after `step` of `total_steps`; never more than after the step before.

    Args:
        step: optimizer steps done, from 0.
        total_steps: optimizer steps of the whole run.
        everything: number of all entries.
        budget: how many live in the end, at most `everything`.
    """
    progress = (step / total_steps - PRUNING_STARTS) / (PRUNING_ENDS - PRUNING_STARTS)
    remaining = 1 - min(max(progress, 0.0), 1.0)
    return budget + round((everything - budget) * remaining**3)


def largest(values: Tensor, count: int) -> Tensor:
    """Mask `(n,)` of the `count` largest of `values` `(n,)`; of equal ones the first are taken."""
    order = values.sort(descending=True, stable=True).indices
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def check_budget(budget: int, everything: int) -> None:
    """Raise `ConfigError` if a budget exceeds the number of entries."""
    if budget > everything:
        raise ConfigError(
            f"budget {budget} exceeds the {everything} trainable singular values; use at most "
            f"that many, or leave budget out to keep them all"
        )


class Pruner:
    """Prunes the entries of some parameters down to a budget while they are trained.

        optimizer.step()
        pruner.weigh()          # with the gradients of that step
        pruner.prune(step)

    A pruned entry is zero after every step and does not come back. All is decided by the parameters
    and their gradients, on their device: processes that share these prune alike.

    Args:
        parameters: the trained vectors, zero at the start.
        budget: how many of their entries to keep.
        total_steps: optimizer steps of the whole run.

    Raises:
        ConfigError: the budget exceeds the number of entries.

    Attributes:
        importance: running mean of `|δ · ∂L/∂δ|` of every entry, `(n,)` float32.
        live: whether an entry is still trained, `(n,)` bool.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], budget: int, total_steps: int) -> None:
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in parameters]
        everything = sum(self._sizes)
        check_budget(budget, everything)
        self._budget = budget
        self._total_steps = total_steps
        device = parameters[0].device
        self.importance = torch.zeros(everything, device=device)
        self.live = torch.ones(everything, dtype=torch.bool, device=device)

    @torch.no_grad()
    def weigh(self) -> None:
        """Take the parameters and the gradients of a step into the importance of their entries."""
        # Starting from zero scales all means alike, which their order does not see.
        change = [
            p.mul(p.grad).abs() if p.grad is not None else torch.zeros_like(p)
            for p in self._parameters
        ]
        self.importance.lerp_(torch.cat(change), 1 - _DECAY)

    @torch.no_grad()
    def prune(self, step: int) -> None:
        """Leave as many entries alive as the schedule wants after `step`, and zero the others."""
        everything = self.live.numel()
        if self.live.sum() > self._budget:
            count = live_entries(step, self._total_steps, everything, self._budget)
            self.live &= largest(self.importance.masked_fill(~self.live, -1.0), count)
        for parameter, live in zip(self._parameters, self.live.split(self._sizes), strict=True):
            parameter.masked_fill_(~live, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, on the CPU."""
        return {"importance": self.importance.cpu(), "live": self.live.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            KeyError: an entry is missing.
            ValueError: it is of other parameters; nothing is changed.
        """
        own = self.state_dict()
        if any(state[name].shape != tensor.shape for name, tensor in own.items()):
            raise ValueError("it holds the importance of another number of entries")
        self.importance.copy_(state["importance"])
        self.live.copy_(state["live"])
