"""Training of Toybox-Flow's transformer and text encoders, resumable to the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .average import Average
from .budget import learning_rate_factor, load_checkpoint, save_checkpoint, set_learning_rate
from .flow_data import Batch, FlowExamples
from .flow_model import FlowModel, pack
from .muon import split_optimizers
from .vae import HELD_BACK

GUIDANCE_RANGE = (1.0, 6.0)
"""Scales that the guidance embedding is told in training."""

PADDINGS = (0, 8, 40, 104, 232, 488)
"""What `max_sequence_length` of 24 to 512 leaves after the tokens that are trained on."""

_LEVEL_MEAN, _LEVEL_STD = 0.3, 1.2
_EMA_DECAY = 0.998
_LOG_STEPS = 25
_VALIDATION_IMAGES = 256
_OUTER = "embed|norm|shared|relative_attention_bias|^proj_out"
"""Adam's: what embeds tokens, places, times, texts and pictures, what modulates, and the end."""

Objective = Callable[[FlowModel, Batch, torch.Generator], Tensor]


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
    """

    steps: int
    batch_size: int = 64
    muon_rate: float = 0.02
    adam_rate: float = 1.5e-3
    decay_start: float = 0.6
    checkpoint_minutes: float = 5.0


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Stratified levels of noise in (0, 1), logit-normal."""
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4))
    return (_LEVEL_MEAN + _LEVEL_STD * normal).sigmoid()


@dataclass
class Noisy:
    """Pictures with noise, packed, and what is to be predicted from them."""

    tokens: Tensor
    velocity: Tensor
    levels: Tensor
    weights: Tensor
    guidance: Tensor
    padding: int

    @classmethod
    def draw(cls, batch: Batch, generator: torch.Generator) -> Noisy:
        """Mix pictures with noise: `(1 - level) * picture + level * noise`."""
        device, count = batch.latents.device, len(batch.latents)
        levels = noise_levels(count, generator).to(device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(device)
        low, high = GUIDANCE_RANGE
        guidance = low + (high - low) * torch.rand(count, generator=generator)
        share = levels[:, None, None, None]
        return cls(
            pack((1 - share) * batch.latents + share * noise),
            pack(noise - batch.latents),
            levels,
            pack(batch.weights.expand_as(batch.latents)),
            guidance.to(device),
            PADDINGS[int(torch.randint(len(PADDINGS), (), generator=generator))],
        )

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Weighted mean squared error, as one number."""
        return ((predicted - target).square() * self.weights).mean() / self.weights.mean()


def flow_loss(model: FlowModel, batch: Batch, generator: torch.Generator) -> Tensor:
    """Error of the velocity; any guidance may be told, and means nothing yet."""
    noisy = Noisy.draw(batch, generator)
    conditions = model.encode(batch.pooled, batch.sequence)
    predicted = model.velocity(
        noisy.tokens, noisy.levels, noisy.guidance, conditions, noisy.padding
    )
    return noisy.error(predicted, noisy.velocity)


class FlowTraining:
    """The state of a training, kept in one checkpoint."""

    def __init__(
        self,
        model: FlowModel,
        checkpoint: Path,
        schedule: Schedule,
        seed: int,
        frozen: tuple[str, ...] = (),
    ) -> None:
        self.model, self._checkpoint, self._schedule, self._seed = model, checkpoint, schedule, seed
        self._modules = [part for name, part in model.modules.items() if name not in frozen]
        self._parameters = [p for module in self._modules for p in module.parameters()]
        rates = (schedule.muon_rate, schedule.adam_rate)
        self._optimizers = split_optimizers(self._modules, *rates, outer=_OUTER)
        self.average = Average(self._parameters, _EMA_DECAY)
        self.step = 0
        if (state := load_checkpoint(checkpoint)) is not None:
            for module, values in zip(self._modules, state["modules"], strict=True):
                module.load_state_dict(values)
            for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.average.values = state["average"]
            self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "modules": [module.state_dict() for module in self._modules],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self.average.values,
            "step": self.step,
        }
        save_checkpoint(self._checkpoint, state)

    def run(
        self,
        examples: FlowExamples,
        objective: Objective,
        device: torch.device,
        until: int | None = None,
    ) -> None:
        """Train to the end of the schedule, or to some step, from where the checkpoint stood."""
        size, total = self._schedule.batch_size, until or self._schedule.steps
        for module in self._modules:
            module.train()
        print(f"flow: {examples.count} pictures, from step {self.step} of {total}", flush=True)
        saved = logged = time.monotonic()
        running = 0.0
        while self.step < total:
            # Every step has its own numbers, so that a resumed run equals one without a stop.
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.step)
            batch = examples.draw(size, generator, device)
            running += self._learn(objective(self.model, batch, generator)) / _LOG_STEPS
            if self.step % _LOG_STEPS == 0:
                speed = _LOG_STEPS * size / (time.monotonic() - logged)
                print(f"flow: step {self.step}, loss {running:.4f}, {speed:.1f}/s", flush=True)
                running, logged = 0.0, time.monotonic()
            if time.monotonic() - saved > self._schedule.checkpoint_minutes * 60:
                self.save()
                self._report(examples, objective, device)
                saved = logged = time.monotonic()
        self.save()
        self._report(examples, objective, device)

    def _learn(self, loss: Tensor) -> float:
        """One step down; returns the loss."""
        progress = self.step / self._schedule.steps
        factor = learning_rate_factor(progress, decay_start=self._schedule.decay_start)
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, max(factor, 1e-3))
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.item()

    @torch.no_grad()
    def _report(self, examples: FlowExamples, objective: Objective, device: torch.device) -> None:
        """Print the averaged weights' loss on pictures held back, with the same noise each time."""
        self.average.swap()
        generator = torch.Generator().manual_seed(0)
        end = examples.count + min(HELD_BACK, _VALIDATION_IMAGES)
        losses = [
            float(objective(self.model, examples.at(indices, generator, device), generator))
            for indices in torch.arange(examples.count, end).split(64)
        ]
        self.average.swap()
        mean = sum(losses) / len(losses)
        print(f"flow: saved at step {self.step}, validation loss {mean:.4f}", flush=True)
