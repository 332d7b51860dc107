"""Training by steps, resumable so that a run with stops equals one without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .average import Average
from .budget import learning_rate_factor, load_checkpoint, save_checkpoint, set_learning_rate
from .muon import OUTER, split_optimizers
from .precision import autocast

_LOG_STEPS = 25


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        steps: in all, over all runs.
        batch_size: pictures a step.
        muon_rate: peak learning rate of the matrices inside the networks.
        adam_rate: peak learning rate of all else.
        decay_start: share of the steps after which the rates fall, linearly, to zero.
        checkpoint_minutes: time between checkpoints.
        average_decay: of the moving average of the weights, per step.
    """

    steps: int
    batch_size: int = 64
    muon_rate: float = 0.02
    adam_rate: float = 1.5e-3
    decay_start: float = 0.6
    checkpoint_minutes: float = 8.0
    average_decay: float = 0.998


class Training:
    """Weights, their averages and the optimizers' state, kept in one checkpoint."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        checkpoint: Path,
        schedule: Schedule,
        seed: int,
        outer: str = OUTER,
    ) -> None:
        self.schedule, self.step = schedule, 0
        self._modules, self._checkpoint, self._seed = modules, checkpoint, seed
        self._parameters = [
            parameter
            for module in modules
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        rates = (schedule.muon_rate, schedule.adam_rate)
        self._optimizers = split_optimizers(modules, *rates, outer=outer)
        self.average = Average(self._parameters, schedule.average_decay)
        if (state := load_checkpoint(checkpoint)) is not None:
            for module, values in zip(modules, state["modules"], strict=True):
                module.load_state_dict(values)
            for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            for ours, theirs in zip(self.average.values, state["average"], strict=True):
                ours.copy_(theirs)
            self.step = state["step"]

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.step / self.schedule.steps

    def run(
        self,
        loss: Callable[[torch.Generator], Tensor],
        report: Callable[[], str],
        device: torch.device,
        until: int | None = None,
    ) -> None:
        """Train to the end of the schedule, or to some step, from where the checkpoint stood.

        Args:
            loss: of a batch drawn with a generator.
            report: figures of the averaged weights, printed with every checkpoint.
            device: what the losses are computed on, in half precision where that pays.
            until: step to stop at.
        """
        name, end = self._checkpoint.stem, until or self.schedule.steps
        for module in self._modules:
            module.train()
        print(f"{name}: from step {self.step} to {end}", flush=True)
        saved = begun = time.monotonic()
        losses: list[Tensor] = []
        while self.step < end:
            # Every step has its own numbers, so that a resumed run equals one without a stop.
            generator = torch.Generator(device).manual_seed(self._seed * 1_000_003 + self.step)
            with autocast(device):
                error = loss(generator)
            losses.append(self._learn(error))
            if self.step % _LOG_STEPS == 0:
                # Read here alone, for a GPU has to finish what it does to tell a loss.
                mean = float(torch.stack(losses).mean())
                speed = len(losses) * self.schedule.batch_size / (time.monotonic() - begun)
                print(f"{name}: step {self.step}, loss {mean:.4f}, {speed:.1f}/s", flush=True)
                losses, begun = [], time.monotonic()
            if time.monotonic() - saved > self.schedule.checkpoint_minutes * 60:
                self._save(report)
                saved = begun = time.monotonic()
        self._save(report)

    def _learn(self, loss: Tensor) -> Tensor:
        """One step down; returns the loss."""
        factor = learning_rate_factor(self.progress, decay_start=self.schedule.decay_start)
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, max(factor, 1e-3))
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.detach()

    def _save(self, report: Callable[[], str]) -> None:
        state = {
            "modules": [module.state_dict() for module in self._modules],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self.average.values,
            "step": self.step,
        }
        save_checkpoint(self._checkpoint, state)
        self.average.swap()
        with torch.no_grad():
            figures = report()
        self.average.swap()
        print(f"{self._checkpoint.stem}: saved at step {self.step}, {figures}", flush=True)


@torch.no_grad()
def load_average(modules: Sequence[nn.Module], checkpoint: Path) -> int:
    """Give modules the averaged weights of a training; returns its steps.

    Raises:
        FileNotFoundError: that training has no checkpoint yet.
    """
    state = load_checkpoint(checkpoint)
    if state is None:
        raise FileNotFoundError(f"{checkpoint} is not there: train first")
    for module, values in zip(modules, state["modules"], strict=True):
        module.load_state_dict(values)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter, value in zip(parameters, state["average"], strict=True):
        parameter.copy_(value)
    steps: int = state["step"]
    return steps
