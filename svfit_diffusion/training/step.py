"""One optimizer step: losses, gradients, shifts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from svfit_diffusion.errors import DivergedError
from svfit_diffusion.training.budget import Pruner
from svfit_diffusion.training.objective import Objective
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
        self._settings = settings
        self._accelerator = accelerator
        self._objective = objective
        self._subject = subject
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.step = 0

    def next(self, pruner: Pruner | None, average: EMAModel | None) -> StepRecord:
        """Make a step.

        Args:
            pruner: prunes after it.
            average: follows it.

        Raises:
            DivergedError: the loss is not finite; the shifts are those of the step before.
        """
        optimizer = self._optimizer
        instance, prior = self._accumulate()
        total = instance + self._settings.prior_loss_weight * (prior or 0.0)
        learning_rate = float(optimizer.param_groups[0]["lr"])
        if not math.isfinite(total):
            optimizer.zero_grad()
            raise DivergedError(
                f"the loss became {total} in step {self.step + 1}; lower learning_rate "
                f"(now {learning_rate:g}), or use bf16 or no mixed precision"
            )
        parameters = self._subject.parameters()
        average_gradients(self._accelerator, parameters)
        self._accelerator.clip_grad_norm_(parameters, self._settings.max_grad_norm)
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
            total_steps=self._settings.total_steps,
            loss=total,
            instance_loss=instance,
            prior_loss=prior,
            learning_rate=learning_rate,
            sigma_drift=self._subject.drift(),
        )

    def _accumulate(self) -> tuple[float, float | None]:
        """Gradients of a step, and its losses on the subject and on the class."""
        settings, accelerator = self._settings, self._accelerator
        sums = torch.zeros(2)
        keeps_class = False
        for accumulated in range(settings.accumulation):
            with accelerator.autocast():
                instance, prior = self._objective.losses(self._positions(accumulated))
            keeps_class = prior is not None
            loss = instance if prior is None else instance + settings.prior_loss_weight * prior
            accelerator.backward(loss / settings.accumulation)
            for i, part in enumerate((instance, prior)):
                if part is not None:
                    sums[i] += part.detach().cpu() / settings.accumulation
        with together(accelerator):
            first, second = accelerator.reduce(sums.to(accelerator.device), "mean").tolist()
        return first, second if keeps_class else None

    def _positions(self, accumulated: int) -> list[int]:
        """Where this process's batch lies in the stream of examples."""
        batch, accelerator = self._settings.batch_size, self._accelerator
        batches = self.step * self._settings.accumulation + accumulated
        start = (batches * accelerator.num_processes + accelerator.process_index) * batch
        return list(range(start, start + batch))
