"""One optimizer step: losses, gradients, shifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from svfit_diffusion.errors import DivergedError
from svfit_diffusion.training.budget import Pruner
from svfit_diffusion.training.objective import Losses, Objective
from svfit_diffusion.training.optimization import average_gradients
from svfit_diffusion.training.processes import together
from svfit_diffusion.training.subject import Subject


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did.

    Attributes:
        step: optimizer steps done, from 1.
        total_steps: optimizer steps of the whole run.
        loss: loss that was minimised, mean over the global batch.
        instance_loss: its part on the subject's photos.
        prior_loss: its part that keeps the class, unweighted; None without one.
        learning_rate: of the denoiser's shifts, in this step.
        sigma_drift: how far the singular values have moved, `‖δ‖ / ‖σ⁰‖` over all trained ones.
    """

    step: int
    total_steps: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float
    sigma_drift: float


@dataclass(frozen=True)
class StepSettings:
    """What goes into a step.

    Attributes:
        total_steps: optimizer steps of the whole run.
        batch_size: photos per process and forward pass.
        accumulation: forward passes per step.
        prior_loss_weight: weight of the loss that keeps the class.
        max_grad_norm: gradients are clipped to this norm.
    """

    total_steps: int
    batch_size: int
    accumulation: int
    prior_loss_weight: float
    max_grad_norm: float


class Stepper:
    """Makes the steps of a run, one after the other.

    Args:
        settings: what goes into a step.
        accelerator: of the run.
        objective: what is minimised.
        subject: the adapter in training.
        optimizer: of its shifts.
        lr_scheduler: of the optimizer's rates.

    Attributes:
        settings: as given.
        accelerator: as given.
        objective: as given.
        step: optimizer steps done.
    """

    def __init__(
        self,
        settings: StepSettings,
        accelerator: Accelerator,
        objective: Objective,
        subject: Subject,
        optimizer: Any,
        lr_scheduler: Any,
    ) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.objective = objective
        self._subject = subject
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.step = 0

    def next(self, pruner: Pruner | None, average: EMAModel | None) -> StepRecord:
        """Make a step, with an own pass; raises and arguments as `take`."""
        ((instance, prior),) = accumulate([self], lambda at: [self.objective.losses(at[0])])
        return self.take(instance, prior, pruner, average)

    def take(
        self,
        instance: float,
        prior: float | None,
        pruner: Pruner | None,
        average: EMAModel | None,
    ) -> StepRecord:
        """Make a step by the gradients that are there.

        Args:
            instance: loss on the subject's photos.
            prior: loss that keeps the class, unweighted.
            pruner: prunes after it.
            average: follows it.

        Raises:
            DivergedError: the loss is not finite; the shifts are those of the step before.
        """
        optimizer = self._optimizer
        total = instance + self.settings.prior_loss_weight * (prior or 0.0)
        learning_rate = float(optimizer.param_groups[0]["lr"])
        if not math.isfinite(total):
            optimizer.zero_grad()
            raise DivergedError(
                f"the loss became {total} in step {self.step + 1}; lower learning_rate "
                f"(now {learning_rate:g}), or use bf16 or no mixed precision"
            )
        parameters = self._subject.parameters()
        average_gradients(self.accelerator, parameters)
        self.accelerator.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        self.step += 1
        if not optimizer.step_was_skipped:  # else the gradients are not finite
            self._lr_scheduler.step()
            if pruner:
                pruner.weigh()
        if pruner:
            pruner.prune(self.step)
        if average:
            average.step(parameters)
        optimizer.zero_grad()
        return StepRecord(
            step=self.step,
            total_steps=self.settings.total_steps,
            loss=total,
            instance_loss=instance,
            prior_loss=prior,
            learning_rate=learning_rate,
            sigma_drift=self._subject.drift(),
        )

    def positions(self, accumulated: int) -> list[int]:
        """Where this process's batch lies in the stream of examples, in a forward pass of the next
        step.
        """
        batch, accelerator = self.settings.batch_size, self.accelerator
        batches = self.step * self.settings.accumulation + accumulated
        start = (batches * accelerator.num_processes + accelerator.process_index) * batch
        return list(range(start, start + batch))

    def weighed(self, losses: Losses) -> Tensor:
        """What is minimised in a forward pass, as gradients are taken of it."""
        instance, prior = losses
        loss = instance if prior is None else instance + self.settings.prior_loss_weight * prior
        loss = loss / self.settings.accumulation
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)


def accumulate(
    steppers: Sequence[Stepper], losses: Callable[[list[list[int]]], list[Losses]]
) -> list[tuple[float, float | None]]:
    """The gradients of a step of several runs, each in its own shifts, and their losses on the
    subject and on the class.

    Since no shift is in two of the losses, one backward pass through their sum gives each its own.

    Args:
        steppers: of the runs; they accumulate alike.
        losses: gives those of a forward pass, at positions of each one's stream of examples.
    """
    accelerator, accumulation = steppers[0].accelerator, steppers[0].settings.accumulation
    sums = torch.zeros(len(steppers), 2, device=accelerator.device)
    keep_class = [False] * len(steppers)
    for accumulated in range(accumulation):
        with accelerator.autocast():
            each = losses([stepper.positions(accumulated) for stepper in steppers])
        keep_class = [prior is not None for _, prior in each]
        weighed = [s.weighed(own) for s, own in zip(steppers, each, strict=True)]
        torch.stack(weighed).sum().backward()
        parts = [torch.stack([i, torch.zeros_like(i) if p is None else p]) for i, p in each]
        sums += torch.stack(parts).detach().to(sums) / accumulation
    with together(accelerator):
        found = accelerator.reduce(sums, "mean").tolist()
    return [
        (instance, prior if keeps else None)
        for (instance, prior), keeps in zip(found, keep_class, strict=True)
    ]
