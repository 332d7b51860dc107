"""Telling whether a weight still holds the values last seen.

A version counter is no help: `.data` writes, as fusing a LoRA does, leave it as it is, and moves
and casts, which are no change, exchange the memory. So some values are compared.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_STRIDE = 7919  # a prime, so that columns are met in an order unlike that of rows


@dataclass(frozen=True)
class Mark:
    """Some values of a weight, at least one of each row and of each column.

    Attributes:
        values: `(n,)` in the weight's dtype, where the weight was.
    """

    values: Tensor

    def fits(self, weight: Tensor) -> bool:
        """Whether `weight` holds the marked values, moved or cast since then, or not."""
        now = _values(weight)
        before = self.values.to(now.device)
        if before.numel() != now.numel():
            return False
        # A cast may have gone through a narrower type and back.
        ways = (before.dtype, torch.float16, torch.bfloat16)
        return any(_alike(before.to(way).to(now.dtype), now) for way in ways)


def mark(weight: Tensor) -> Mark:
    """A mark of the values that `weight` `(out, in, *kernel)` holds now."""
    return Mark(_values(weight))


def misfits(marks: Sequence[Mark], weights: Sequence[Tensor]) -> list[int]:
    """The numbers of those weights that their marks do not fit, in order.

    As a rule all values are what they were. That is seen for all weights of a kind at once: each
    look at an accelerator's result waits for it.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    now = [_values(weight) for weight in weights]
    for number, (mark, values) in enumerate(zip(marks, now, strict=True)):
        is_alike = (mark.values.device, mark.values.dtype) == (values.device, values.dtype)
        if is_alike and len(mark.values) == len(values):
            kinds[values.device, values.dtype].append(number)
    same: set[int] = set()
    for numbers in kinds.values():
        before = _joined([marks[number].values for number in numbers])
        if torch.equal(before, _joined([now[number] for number in numbers])):
            same.update(numbers)
    return [
        number
        for number, (mark, weight) in enumerate(zip(marks, weights, strict=True))
        if number not in same and not mark.fits(weight)
    ]


def _joined(parts: list[Tensor]) -> Tensor:
    """Some values in one tensor; float8, which cannot be compared everywhere, as bytes."""
    is_float8 = parts[0].element_size() == 1
    return torch.cat([part.view(torch.uint8) for part in parts] if is_float8 else parts)


def _values(weight: Tensor) -> Tensor:
    place = _places(weight.shape, weight.device)
    detached = weight.detach()
    if detached.element_size() == 1:  # float8, which cannot be indexed everywhere
        return detached.view(torch.uint8)[place].view(detached.dtype)
    return detached[place]


@functools.lru_cache(maxsize=64)
def _places(shape: torch.Size, device: torch.device) -> tuple[Tensor, ...]:
    d_out, d_in = shape[0], math.prod(shape[1:])
    index = torch.arange(max(d_out, d_in), device=device)
    columns = (index * _STRIDE + index // d_in) % d_in
    return (index % d_out, *torch.unravel_index(columns, shape[1:]))


def _alike(before: Tensor, now: Tensor) -> bool:
    """Equal but for what adding something and taking it away again leaves, as LoRAs do."""
    rounding = torch.finfo(now.dtype).eps
    before, now = before.float(), now.float()
    return bool((now - before).norm() <= rounding * before.norm())
