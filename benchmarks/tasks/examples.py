"""Labelled examples, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.tasks.packages import TaskError


@dataclass(frozen=True)
class Examples:
    """Inputs with the numbers of their classes.

    Attributes:
        inputs: of an encoder, each of its own length along the first dimension.
        labels: `(n,)` int64.
    """

    inputs: Sequence[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def chosen(self, where: Sequence[int]) -> Examples:
        """Some of them, in this order."""
        return Examples([self.inputs[i] for i in where], self.labels[list(where)])

    def batch(self, where: Sequence[int], device: str) -> tuple[Tensor, Tensor]:
        """Some of them `(n, longest, …)`, filled up with zeros, and their labels `(n,)`."""
        inputs = pad_sequence([self.inputs[i] for i in where], batch_first=True)
        return inputs.to(device), self.labels[list(where)].to(device)

    def by_length(self, size: int) -> Iterator[list[int]]:
        """Positions in batches of at most `size`, of like lengths."""
        order = sorted(range(len(self)), key=lambda i: len(self.inputs[i]))
        for start in range(0, len(order), size):
            yield order[start : start + size]


@dataclass(frozen=True)
class Split:
    """Examples to learn from, to choose learning rates by, and to report."""

    train: Examples
    validation: Examples
    test: Examples


def split(examples: Examples, train: int, validation: int, test: int, seed: int) -> Split:
    """Validation and test are the same for every seed, who learns what from the rest is not.

    Args:
        examples: all.
        train: how many to learn from, drawn by the seed.
        validation: how many.
        test: how many.
        seed: of the run.

    Raises:
        TaskError: there are not as many.
    """
    if train + validation + test > len(examples):
        raise TaskError(
            f"the task has {len(examples)} examples, {train} + {validation} + {test} were asked "
            f"for: lower --train, --validation or --test"
        )
    order = torch.randperm(len(examples), generator=_generator(0)).tolist()
    rest = order[validation + test :]
    drawn = torch.randperm(len(rest), generator=_generator(seed + 1))[:train].tolist()
    return Split(
        examples.chosen([rest[i] for i in drawn]),
        examples.chosen(order[:validation]),
        examples.chosen(order[validation : validation + test]),
    )


def shuffled(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Positions in `steps` batches of `size`, each position once before any comes again."""
    generator, left = _generator(seed), list[int]()
    for _ in range(steps):
        while len(left) < size:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:size]
        left = left[size:]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
