"""Labelled examples, and how they are drawn."""

from __future__ import annotations

from collections import Counter
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


def parted(examples: Examples, *counts: int) -> list[Examples]:
    """Parts of these sizes, drawn always alike, and the rest.

    Raises:
        TaskError: there are not as many examples.
    """
    _check_count(sum(counts), len(examples))
    order = torch.randperm(len(examples), generator=_generator(0)).tolist()
    parts = []
    for count in counts:
        parts.append(examples.chosen(order[:count]))
        order = order[count:]
    return [*parts, examples.chosen(order)]


def drawn(examples: Examples, count: int, seed: int) -> Examples:
    """Some examples by the seed, with as many of each class as there are, give or take one.

    Raises:
        TaskError: there are not as many examples.
    """
    _check_count(count, len(examples))
    seen: Counter[int] = Counter()
    turns = []
    for i in torch.randperm(len(examples), generator=_generator(seed)).tolist():
        label = int(examples.labels[i])
        turns.append((seen[label], i))
        seen[label] += 1
    turns.sort(key=lambda turn: turn[0])  # stable: the first of each class, then the second
    return examples.chosen([i for _, i in turns[:count]])


def shuffled(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Positions in `steps` batches of `size`, each position once before any comes again."""
    generator, left = _generator(seed), list[int]()
    for _ in range(steps):
        while len(left) < size:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:size]
        left = left[size:]


def _check_count(wanted: int, found: int) -> None:
    if wanted > found:
        raise TaskError(
            f"the task has {found} examples where {wanted} are asked for: lower --train, "
            f"--validation or --test"
        )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
