"""What a denoiser is told of prompts, in the form in which it can be kept and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

_REFERENCES = "references"


@dataclass(frozen=True)
class Conditions:
    """Named values of several prompts, in their order.

    Attributes:
        values: each a tensor `(n, …)`, or a list of n tensors where prompts differ in length.
    """

    values: dict[str, Tensor | list[Tensor]]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __len__(self) -> int:
        """How many prompts."""
        return len(next(iter(self.values.values())))

    @property
    def references(self) -> list[Tensor] | None:
        """Latents `(c, h, w)` of the image to edit for each prompt, if there are any."""
        found: Any = self.values.get(_REFERENCES)
        return found

    def with_references(self, references: list[Tensor] | None) -> Conditions:
        """The same prompts with images to edit, latents `(c, h, w)` as the denoiser knows them."""
        return self if references is None else Conditions(self.values | {_REFERENCES: references})

    def select(self, indices: Sequence[int]) -> Conditions:
        """Those of the prompts at `indices`, in that order; one may come several times."""
        return Conditions(
            {
                name: [value[i] for i in indices]
                if isinstance(value, list)
                else value[torch.tensor(indices, dtype=torch.long, device=value.device)]
                for name, value in self.values.items()
            }
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditions:
        """On a device; numbers with a fraction in `dtype` if given, masks and ids as they are."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return Conditions(
            {
                name: [moved(row) for row in value] if isinstance(value, list) else moved(value)
                for name, value in self.values.items()
            }
        )

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Those of all parts, one after the other; the parts come from one family."""
        joined: dict[str, Tensor | list[Tensor]] = {}
        for name, first in parts[0].values.items():
            values: list[Any] = [part.values[name] for part in parts]
            joined[name] = [*chain(*values)] if isinstance(first, list) else torch.cat(values)
        return Conditions(joined)
