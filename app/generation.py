"""Drawing pictures: one pipeline, one thread, batches shared by all who wait, a stream of progress
for every visitor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image
from torch import Tensor

from svfit_diffusion.errors import SVFitError
from svfit_diffusion.serving.painting import Painter
from svfit_diffusion.training.threads import leave_busy_cores

from .base_model import BaseModel
from .drawing import Drawing
from .errors import LibraryError
from .library import AdapterLibrary, FileVersion, misfit_reason
from .line import Line
from .picture import SCHEDULERS, PictureSettings
from .previews import previews
from .settings import Limits
from .visitors import current_visitor
from .visits import Event, Portion, in_portions, shares

_PREVIEWS = 6
"""How often the forming pictures are shown on the way."""

_LOADED_BYTES = 2**29
"""Of the files of adapters that stay loaded."""

_LOOK = 0.1
"""Seconds for which a drawing looks for cores that other programs use."""


def concurrent_drawings(limits: Limits) -> int:
    """How many requests for pictures Gradio lets through: more than there are places in the line,
    which is fair to visitors as Gradio's own queue is not.
    """
    return limits.max_waiting + limits.max_places


class ImageGenerator:
    """Draws pictures on one view of the base model, whoever asks.

    The view belongs to a single thread. It takes portions of pictures in turn (`Line`), and with
    each those waiting that differ in prompt, adapters and seed only, as far as one batch has room:
    every row of it is shifted by its own adapters alone. On a model that refuses such batches
    they are drawn one after the other. Noise comes from each picture's own seed. So the same
    request gives the same picture to the last bit when it is drawn by itself, whatever was drawn
    before; in company, or on another number of a CPU's cores, float32 sums may round otherwise, by
    a level of 255 or so.

    Adapters stay loaded, a vector per layer each, so switching costs no more than the product
    `U diag(δ) Vᵀ`; of very many, those last asked for.

    Args:
        base: the base model.
        library: where adapters come from.
        limits: what a visitor may ask for.
    """

    def __init__(self, base: BaseModel, library: AdapterLibrary, limits: Limits) -> None:
        self._pipe = base.view()
        self._drawing = Drawing(self._pipe)
        self._painter = Painter(self._pipe, self._drawing)
        self._library = library
        self._limits = limits
        self._loaded: dict[str, FileVersion | None] = {}
        self._line = Line(limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def run(self, wanted: Sequence[PictureSettings]) -> Iterator[Event]:
        """Draw pictures, those that may share a batch together, reporting every step.

        Closing the iterator takes what waits off the queue and stops the drawing after the current
        step, unless others draw in the same batch; it does not wait.

        Raises:
            SettingError: a setting is out of range; nothing is drawn.
            LibraryError: an adapter is not there, is damaged or does not fit the base model.
            BusyError: there is no place for this visitor, or they have left.
        """
        for settings in wanted:
            settings.check(self._limits)
            self._drawing.check(settings)
            for name in settings.adapters:
                self._library.path(name)
        portions = in_portions(current_visitor(), wanted, self._limits.max_images)
        if not portions:
            return
        self._line.join(portions)
        for _ in portions:
            # One call per portion is enough, though none need draw its own.
            self._thread.submit(self._draw_next)
        yield from portions[0].visit.stream()

    def _draw_next(self) -> None:
        """Draw the batch whose turn it is, if anyone is still waiting."""
        taken = self._line.take()
        try:
            versions = self._make_room()
            ready = [portion for portion in taken if self._loads(portion, versions)]
            if ready:
                self._draw(ready)
        except Exception as error:
            for portion in taken:
                portion.visit.fail(error)

    def _draw(self, batch: list[Portion]) -> None:
        """Draw several portions together, or one after the other where the model cannot."""
        if self._pipe.device.type == "cpu":
            leave_busy_cores(_LOOK)
        for together in [batch] if self._painter.mixes else [[portion] for portion in batch]:
            try:
                images = self._paint(together)
            except Exception as error:
                for portion in together:
                    portion.visit.fail(error)
            else:
                for portion, own in zip(together, shares(together, images), strict=True):
                    portion.finish(own)

    def _paint(self, batch: list[Portion]) -> list[Image.Image]:
        """The pictures of several portions, in order."""
        wanted = [settings for portion in batch for settings in portion.wanted]
        return self._painter.paint(
            wanted,
            [settings.adapters for settings in wanted],
            partial(self._after_step, batch),
            SCHEDULERS[wanted[0].scheduler],
        )

    def _after_step(self, batch: list[Portion], step: int, latents: Tensor) -> None:
        """Report a step to all of the batch; raise `_AllLeftError` if nobody is there."""
        if all(portion.visit.over.is_set() for portion in batch):
            raise _AllLeftError
        steps, family, settings = self._steps(), self._drawing.family, batch[0].wanted[0]
        shows = step % max(1, steps // _PREVIEWS) == 0 and step < steps
        forming: tuple[Image.Image, ...] = ()
        if shows and family:
            forming = previews(family, latents, (settings.height, settings.width))
        for portion, own in zip(batch, shares(batch, forming), strict=True):
            portion.progress(step, steps, own)

    def _steps(self) -> int:
        """Steps of the call that is under way."""
        return len(self._pipe.scheduler.timesteps)

    def _make_room(self) -> dict[str, FileVersion]:
        """Drop the adapters that have changed on disk, and of too many those not asked for longest.

        Returns:
            What is on disk now.
        """
        versions = self._library.versions()
        kept = {n: seen for n, seen in self._loaded.items() if seen and versions.get(n) == seen}
        excess = sum(seen.file_bytes for seen in kept.values()) - _LOADED_BYTES
        for name, seen in list(kept.items()):
            if excess > 0:
                excess -= seen.file_bytes
                del kept[name]
        for name in self._loaded.keys() - kept.keys():
            self._pipe.delete_svfit_adapters(name)
            del self._loaded[name]
        return versions

    def _loads(self, portion: Portion, versions: Mapping[str, FileVersion]) -> bool:
        """Load a portion's adapters; what is wrong with them is its visitor's concern alone."""
        portion.progress(0, portion.wanted[0].steps)
        try:
            for name in dict.fromkeys(n for s in portion.wanted for n in s.adapters):
                if name in self._loaded:
                    self._loaded[name] = self._loaded.pop(name)  # the last one asked for
                else:
                    self._load(name)
                    # None if it has come since: then it is loaded again next time.
                    self._loaded[name] = versions.get(name)
        except Exception as error:
            portion.visit.fail(error)
            return False
        return True

    def _load(self, name: str) -> None:
        path = self._library.path(name)
        try:
            self._pipe.load_svfit_weights(
                path, adapter_name=name, activate=False, show_progress=False
            )
        except SVFitError as error:
            raise LibraryError(f"“{name}” cannot be used. {misfit_reason(error)}") from error


class _AllLeftError(Exception):
    """Nobody waits for the pictures that are being drawn."""
