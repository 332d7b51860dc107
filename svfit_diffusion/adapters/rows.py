"""Which rows of a batch belong to which prompt, or to which adapter in training."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.adapters.drawing import GIVEN_ELSEWHERE
from svfit_diffusion.errors import BatchError, StateError


class RowLayout:
    """Which prompt a row of a batch belongs to, in the order that diffusers' pipelines make.

    The rows of a prompt's images lie side by side. Guidance repeats the whole batch,
    `[unconditional …, conditional …]`.

    Args:
        prompts: number of prompts.
        images: rows of each prompt.
        most_repeats: how often guidance may repeat the batch.
    """

    def __init__(self, prompts: int, images: int = 1, most_repeats: int = 1) -> None:
        self._prompts = prompts
        self._images = images
        self._most_repeats = most_repeats
        self._seen: int | None = None
        self._thread = threading.get_ident()

    def see(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the model: learn the rows of the batch that it gets.

        Raises:
            BatchError: such a batch cannot come from these prompts.
            StateError: another thread has given them.
        """
        if not torch.compiler.is_compiling() and threading.get_ident() != self._thread:
            raise StateError(GIVEN_ELSEWHERE)
        rows = next((n for value in (*args, *kwargs.values()) if (n := _rows(value))), 0)
        self._check(rows)
        self._seen = rows

    def prompt_of_rows(self, rows: int) -> list[int]:
        """The prompt of each of `rows` rows.

        Raises:
            BatchError: such a batch cannot come from these prompts, or a layer gets other rows than
                its model did, such as the frames of a video.
        """
        if self._seen is not None and rows != self._seen:
            raise BatchError(
                f"the model gets {self._seen} rows and one of its layers {rows}: it folds frames "
                f"or tokens into rows, so adapters cannot be given per prompt; draw the prompts "
                f"one after the other with set_svfit_adapters()"
            )
        self._check(rows)
        batch = self._prompts * self._images
        return [row % batch // self._images for row in range(rows)]

    def repeats(self, rows: int) -> int:
        """How often guidance repeats the prompts in a batch of so many rows that fits."""
        return rows // (self._prompts * self._images)

    def _check(self, rows: int) -> None:
        batch = self._prompts * self._images
        if not rows or rows % batch or rows > batch * self._most_repeats:
            sizes = [str(batch * repeat) for repeat in range(1, self._most_repeats + 1)]
            raise BatchError(
                f"got a batch of {rows} rows, expected {' or '.join(sizes)}: adapters are given "
                f"for {self._prompts} prompts, {self._images} rows each; call the pipeline with a "
                f"list of {self._prompts} prompts (and as many negative prompts, if any) and the "
                f"num_images_per_prompt given to svfit_adapters_per_prompt()"
            )


class RowOwners:
    """Which adapter a row of a batch belongs to, while several are trained in one pass.

    Attributes:
        names: of the adapters in training.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._rows: tuple[str, ...] = ()

    @contextmanager
    def given(self, rows: Sequence[str]) -> Iterator[None]:
        """While within, models are called with rows of these adapters, in this order."""
        before, self._rows = self._rows, tuple(rows)
        try:
            yield
        finally:
            self._rows = before

    def again(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of `torch.utils.checkpoint`: what is computed again is of the same rows."""
        return nullcontext(), self.given(self._rows)

    def parts(self, rows: int) -> list[str]:
        """The owners of the equal parts, as large as can be, of a batch of so many rows.

        Raises:
            StateError: models are called outside of `given`.
            BatchError: a layer gets other rows than its model did, and they are not all of one.
        """
        if not self._rows:
            raise StateError(
                "several adapters are in training, each for rows of its own, and nobody has said "
                "whose rows these are; draw inside of their trainer's generating()"
            )
        runs = [len(list(run)) for _, run in groupby(self._rows)]
        if len(runs) > 1 and rows != len(self._rows):
            raise BatchError(
                f"the model gets {len(self._rows)} rows and one of its layers {rows}: it folds "
                f"frames or tokens into rows, so its layers cannot tell several subjects apart; "
                f"train them one at a time (subjects_at_once=1)"
            )
        return list(self._rows[:: math.gcd(*runs)])


def _rows(value: Any) -> int:
    """The rows of a batch, a tensor or a list of each row's tensor; 0 of anything else."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value.shape[0]
    if isinstance(value, list) and value and all(isinstance(v, torch.Tensor) for v in value):
        return len(value)
    return 0
