"""Training a classifier, and its accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tasks.classifier import Classifier
from benchmarks.tasks.examples import Examples, shuffled
from svfit_diffusion.training.budget import Pruner

_EVALUATED = 64
"""Examples in a batch of no gradients."""


@dataclass(frozen=True)
class Recipe:
    """What all methods are trained by.

    Attributes:
        steps: of AdamW without weight decay, at a learning rate that rises over the first tenth
            and falls to zero over the others.
        batch: examples in each.
        head_learning_rate: of the head, where something else is trained beside it.
    """

    steps: int = 400
    batch: int = 16
    head_learning_rate: float = 3e-3


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that want gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def train(
    classifier: Classifier,
    examples: Examples,
    recipe: Recipe,
    rate: float,
    seed: int,
    device: str,
    budget: int | None = None,
) -> Iterator[float]:
    """Train what wants gradients; the loss of each step.

    Args:
        classifier: on the device.
        examples: to learn from.
        recipe: for all methods.
        rate: the peak learning rate of what is trained in the encoder, else of the head.
        seed: of the examples' order.
        device: of the classifier.
        budget: how many of the encoder's trained values are kept, all of them zero at the start.
    """
    own = trained_parameters(classifier.encoder)
    head_rate = recipe.head_learning_rate if own else rate
    head = trained_parameters(classifier.head)
    groups = [{"params": head, "lr": head_rate}]
    if own:
        groups.append({"params": own, "lr": rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rising = max(1, recipe.steps // 10)
    pruner = Pruner(own, budget, recipe.steps) if budget else None

    def share(step: int) -> float:
        return min((step + 1) / rising, (recipe.steps - step) / max(1, recipe.steps - rising))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    batches = shuffled(len(examples), recipe.batch, recipe.steps, seed)
    for step, where in enumerate(batches, 1):
        inputs, labels = examples.batch(where, device)
        loss = F.cross_entropy(classifier(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*head, *own], 1.0)
        optimizer.step()
        schedule.step()
        if pruner:
            pruner.weigh()
            pruner.prune(step)
        yield loss.item()


@torch.no_grad()
def accuracy(classifier: Classifier, examples: Examples, device: str) -> float:
    """The share of examples whose largest logit is that of their class."""
    right = 0
    for where in examples.by_length(_EVALUATED):
        inputs, labels = examples.batch(where, device)
        right += int((classifier(inputs).argmax(1) == labels).sum())
    return right / len(examples)
