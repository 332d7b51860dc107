"""Pictures of one batch, every one with adapters of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from PIL import Image
from torch import Tensor

from svfit_diffusion.errors import BatchError, StateError
from svfit_diffusion.serving.drawing import Drawing
from svfit_diffusion.serving.picture import Picture

logger = logging.getLogger(__name__)

Mix = Mapping[str, float]
"""Strengths of the adapters of one picture, by name."""

Watch = Callable[[int, Tensor], None]
"""Called with the steps done and the forming latents after each step."""


class Painter:
    """Draws pictures on a pipeline that nobody else uses meanwhile.

    Noise comes from each picture's own seed, and its row of a batch is shifted by its own adapters
    alone. So a picture is the same to the last bit whenever it is drawn by itself, whatever was
    drawn before. In company sums are rounded otherwise: on the tests' model of two steps a value
    moves by less than 2e-5 of the range from black to white in float32, which turns a level of 255
    at most, and by less than 40 eps in float16 and bfloat16.

    On a model that refuses batches of several adapters, such as one that folds frames into rows,
    they are drawn one adapter after the other.

    Args:
        pipe: a text-to-image pipeline that has the adapters.
        drawing: of that pipeline.

    Attributes:
        mixes: whether the model takes batches of several adapters, as far as is known.
    """

    def __init__(self, pipe: Any, drawing: Drawing) -> None:
        self._pipe = pipe
        self._drawing = drawing
        self._own_scheduler = pipe.scheduler
        self.mixes = True

    def paint(
        self,
        wanted: Sequence[Picture],
        mixes: Sequence[Mix],
        watch: Watch,
        scheduler: type | None = None,
    ) -> list[Image.Image]:
        """Pictures that have `common` in common, in order.

        Args:
            wanted: the pictures.
            mixes: of each picture, by the names that adapters have on the pipeline.
            watch: may raise, which ends the drawing.
            scheduler: kind of scheduler; the base model's own by default.
        """
        if self.mixes:
            try:
                with self._pipe.svfit_adapters_per_prompt(mixes):
                    return self._call(wanted, watch, scheduler)
            except (BatchError, StateError):
                logger.warning(
                    "pictures are drawn one adapter at a time from now on", exc_info=True
                )
                self.mixes = False
        images: list[Image.Image] = []
        pictures = zip(wanted, mixes, strict=True)
        for mix, alike in groupby(pictures, key=lambda picture: dict(picture[1])):
            images += self._alike([picture for picture, _ in alike], mix, watch, scheduler)
        return images

    def _alike(
        self, wanted: Sequence[Picture], mix: Mix, watch: Watch, scheduler: type | None
    ) -> list[Image.Image]:
        """Pictures with the same adapters."""
        self._pipe.set_svfit_adapters(list(mix), list(mix.values()))
        try:
            return self._call(wanted, watch, scheduler)
        finally:
            self._pipe.set_svfit_adapters([])

    def _call(
        self, wanted: Sequence[Picture], watch: Watch, scheduler: type | None
    ) -> list[Image.Image]:
        # A new one each time: schedulers keep state, and some carry it into the next picture.
        kind: Any = scheduler or type(self._own_scheduler)
        self._pipe.scheduler = kind.from_config(self._own_scheduler.config)
        images: list[Image.Image] = self._pipe(
            **self._drawing.arguments(wanted), **self._drawing.watching(watch)
        ).images
        return images
