"""The objective of Toybox-Flow's transformer and text encoders, and their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .flow_data import Batch, FlowExamples
from .flow_model import FlowModel, pack
from .precision import plain_attention
from .training import Schedule, Training, load_average
from .vae import HELD_BACK

GUIDANCE_RANGE = (1.0, 5.0)
"""Scales that the guidance embedding is told in training."""

PADDINGS = (0, 8, 40, 104, 232, 488)
"""What `max_sequence_length` of 24 to 512 leaves after the tokens that are trained on."""

_LEVEL_MEAN, _LEVEL_STD = 0.3, 1.2
_VALIDATION_IMAGES = 256
_OUTER = "embed|norm|shared|relative_attention_bias|^proj_out"
"""Adam's: what embeds tokens, places, times, texts and pictures, what modulates, and the end."""

Objective = Callable[[FlowModel, Batch, torch.Generator], Tensor]


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Stratified levels of noise in (0, 1), logit-normal."""
    device = generator.device
    within = torch.rand(count, generator=generator, device=device)
    strata = (torch.arange(count, device=device) + within) / count
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
    padding: Tensor

    @classmethod
    def draw(cls, batch: Batch, generator: torch.Generator) -> Noisy:
        """Mix pictures with noise: `(1 - level) * picture + level * noise`."""
        device, count = generator.device, len(batch.latents)
        levels = noise_levels(count, generator)
        noise = torch.randn(batch.latents.shape, generator=generator, device=device)
        low, high = GUIDANCE_RANGE
        guidance = low + (high - low) * torch.rand(count, generator=generator, device=device)
        paddings = torch.tensor(PADDINGS, device=device)
        share = levels[:, None, None, None]
        return cls(
            pack((1 - share) * batch.latents + share * noise),
            pack(noise - batch.latents),
            levels,
            pack(batch.weights.expand_as(batch.latents)),
            guidance,
            paddings[torch.randint(len(PADDINGS), (), generator=generator, device=device)],
        )

    def first(self, count: int) -> Noisy:
        """Of the first pictures."""
        return Noisy(
            self.tokens[:count],
            self.velocity[:count],
            self.levels[:count],
            self.weights[:count],
            self.guidance[:count],
            self.padding,
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


def load_learned(model: FlowModel, checkpoint: Path) -> int:
    """Give a model the averaged weights of a training; returns its steps."""
    return load_average(list(model.modules.values()), checkpoint)


def train_flow(
    model: FlowModel,
    examples: FlowExamples,
    objective: Objective,
    checkpoint: Path,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    until: int | None = None,
) -> Training:
    """Train a model by an objective, from wherever the checkpoint stands."""
    training = Training(list(model.modules.values()), checkpoint, schedule, seed, _OUTER)
    examples = examples.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(model, examples.draw(schedule.batch_size, generator), generator)

    def report() -> str:
        """The loss on pictures held back, with the same noise every time."""
        generator = torch.Generator(device).manual_seed(0)
        end = examples.count + min(HELD_BACK, _VALIDATION_IMAGES)
        losses = [
            float(objective(model, examples.at(indices, generator), generator))
            for indices in torch.arange(examples.count, end, device=device).split(64)
        ]
        return f"{examples.count} pictures, validation loss {sum(losses) / len(losses):.4f}"

    with plain_attention(device):
        training.run(loss, report, device, until)
    return training
