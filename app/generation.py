"""Drawing pictures: one pipeline, one thread, a stream of progress for every visitor."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from app.base_model import BaseModel
from app.errors import LibraryError
from app.library import AdapterLibrary, FileVersion, misfit_reason
from app.picture import SCHEDULERS, PictureSettings
from app.settings import Limits
from svfit_diffusion.errors import SVFitError

_PATIENCE = 0.5
"""Seconds without an event after which a visitor gets `Waiting`."""
_PREVIEWS = 6
"""How often the forming pictures are shown on the way."""
_PREVIEW_LATENT_SIDE = 32
"""Larger latents are scaled down to this before a preview is decoded."""


@dataclass(frozen=True)
class Progress:
    """How far the pictures at hand have come.

    Attributes:
        batch: which batch of pictures is being drawn, from 1.
        batches: how many there are.
        step: sampling steps done in this batch; 0 while adapters are being loaded.
        steps: sampling steps of this batch.
        previews: the forming pictures of the batch, at some steps; else empty.
    """

    batch: int
    batches: int
    step: int
    steps: int
    previews: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        index: its place among those asked for.
        settings: what it was drawn with.
        image: RGB.
    """

    index: int
    settings: PictureSettings
    image: Image.Image


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a moment. It comes so that a visitor may leave meanwhile: Python
    cannot close an iterator that is being waited on.
    """


Event = Waiting | Progress | Picture


class ImageGenerator:
    """Draws pictures on one view of the base model, whoever asks.

    The view belongs to a single thread, which takes one visitor's pictures after another's: it sets
    their adapters and draws without anyone in between. Noise comes from each picture's own seed, so
    a picture does not depend on what was drawn before. Adapters stay loaded, a vector per layer
    each, so switching costs no more than the product `U diag(δ) Vᵀ`.

    Args:
        base: the base model.
        library: where adapters come from.
        limits: what a visitor may ask for.
    """

    def __init__(self, base: BaseModel, library: AdapterLibrary, limits: Limits) -> None:
        self._pipe: Any = base.view()
        self._own_scheduler = self._pipe.scheduler
        self._library = library
        self._limits = limits
        self._loaded: dict[str, FileVersion | None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def run(self, wanted: Sequence[PictureSettings]) -> Iterator[Event]:
        """Draw pictures, those that may share a batch together, reporting every step.

        Closing the iterator stops the drawing after the current step, or takes it off the queue,
        without waiting.

        Raises:
            SettingError: a setting is out of range; nothing is drawn.
            LibraryError: an adapter is not there, is damaged or does not fit the base model.
        """
        for settings in wanted:
            settings.check(self._limits)
            for name in settings.adapters:
                self._library.path(name)
        events: SimpleQueue[Event | None] = SimpleQueue()
        stop = threading.Event()
        job = self._thread.submit(self._draw, list(wanted), events.put, stop)
        job.add_done_callback(lambda _: events.put(None))
        try:
            while (event := _next(events)) is not None:
                yield event
            job.result()
        finally:
            stop.set()
            job.cancel()

    def _draw(
        self,
        wanted: list[PictureSettings],
        emit: Callable[[Event], None],
        stop: threading.Event,
    ) -> None:
        batches = _batches(wanted, self._limits.max_images)
        for number, batch in enumerate(batches, 1):
            report = _Report(number, len(batches), emit, stop)
            images = self._draw_batch([wanted[index] for index in batch], report)
            if stop.is_set():
                return
            for index, image in zip(batch, images, strict=True):
                emit(Picture(index, wanted[index], image))

    def _draw_batch(self, batch: list[PictureSettings], report: _Report) -> list[Image.Image]:
        """Pictures that differ in prompt and seed only."""
        common = batch[0]
        report.begin(common.steps)
        self._activate(common.adapters)
        chosen = SCHEDULERS[common.scheduler]
        config = self._own_scheduler.config
        # A new one each time: schedulers keep state, and some carry it into the next picture.
        self._pipe.scheduler = (chosen or type(self._own_scheduler)).from_config(config)
        return self._pipe(
            prompt=[settings.prompt for settings in batch],
            negative_prompt=[settings.negative_prompt for settings in batch],
            num_inference_steps=common.steps,
            guidance_scale=common.guidance_scale,
            width=common.width,
            height=common.height,
            # On the CPU, where a seed means the same noise whatever the device.
            generator=[torch.Generator().manual_seed(settings.seed) for settings in batch],
            callback_on_step_end=report.after_step,
        ).images

    def _activate(self, adapters: Mapping[str, float]) -> None:
        """Make exactly these adapters active, loading what is new or has changed on disk."""
        versions = self._library.versions()
        outdated = [name for name, seen in self._loaded.items() if versions.get(name) != seen]
        for name in outdated:
            self._pipe.delete_svfit_adapters(name)
            del self._loaded[name]
        for name in adapters:
            if name not in self._loaded:
                self._load(name)
                # None if it has come since: then it is loaded again next time.
                self._loaded[name] = versions.get(name)
        self._pipe.set_svfit_adapters(list(adapters), list(adapters.values()))

    def _load(self, name: str) -> None:
        path = self._library.path(name)
        try:
            self._pipe.load_svfit_weights(path, adapter_name=name, show_progress=False)
        except SVFitError as error:
            raise LibraryError(f"“{name}” cannot be used. {misfit_reason(error)}") from error


@dataclass(frozen=True)
class _Report:
    """Follows the pipeline through one batch."""

    batch: int
    batches: int
    emit: Callable[[Event], None]
    stop: threading.Event

    def begin(self, steps: int) -> None:
        self.emit(Progress(self.batch, self.batches, 0, steps))

    def after_step(self, pipe: Any, index: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's `callback_on_step_end`."""
        if self.stop.is_set():
            pipe._interrupt = True  # diffusers' own way to leave the loop
            return tensors
        step, steps = index + 1, pipe.num_timesteps
        shown = step % max(1, steps // _PREVIEWS) == 0 and step < steps
        previews = preview(pipe, tensors["latents"]) if shown else ()
        self.emit(Progress(self.batch, self.batches, step, steps, previews))
        return tensors


@torch.no_grad()
def preview(pipe: Any, latents: Tensor) -> tuple[Image.Image, ...]:
    """Small pictures of latents `(n, c, h, w)` on their way, noise and all."""
    longest = max(latents.shape[-2:])
    if longest > _PREVIEW_LATENT_SIDE:
        scale = _PREVIEW_LATENT_SIDE / longest
        latents = torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return tuple(pipe.image_processor.postprocess(images))


def _next(events: SimpleQueue[Event | None]) -> Event | None:
    try:
        return events.get(timeout=_PATIENCE)
    except Empty:
        return Waiting()


def _batches(wanted: Sequence[PictureSettings], size: int) -> list[list[int]]:
    """Indices of pictures that the pipeline can draw together, at most `size` each, in order."""
    groups: dict[str, list[int]] = {}
    for index, settings in enumerate(wanted):
        common = dataclasses.replace(settings, prompt="", seed=0)
        groups.setdefault(repr(common), []).append(index)
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]
