"""Drawing pictures: one pipeline, one thread, batches shared by all who wait, a stream of progress
for every visitor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from app.base_model import BaseModel
from app.errors import LibraryError
from app.library import AdapterLibrary, FileVersion, misfit_reason
from app.picture import SCHEDULERS, PictureSettings
from app.settings import Limits
from app.visits import Event, Portion, in_portions, shares
from svfit_diffusion.errors import SVFitError

_PREVIEWS = 6
"""How often the forming pictures are shown on the way."""
_PREVIEW_LATENT_SIDE = 32
"""Larger latents are scaled down to this before a preview is decoded."""


def concurrent_drawings(limits: Limits) -> int:
    """How many visitors a generator serves well at a time: a batch of them is drawn while as many
    queue for the next.
    """
    return 2 * limits.max_images


class ImageGenerator:
    """Draws pictures on one view of the base model, whoever asks.

    The view belongs to a single thread. It takes portions of pictures in the order they came, and
    with each those waiting that differ in prompt, adapters and seed only, as far as one batch has
    room: every row of it is shifted by its own adapters alone. Noise comes from each picture's own
    seed. So the same request gives the same picture to the last bit when it is drawn by itself,
    whatever was drawn before; in company float32 sums may round otherwise, by a level of 255 or so.

    Adapters stay loaded, a vector per layer each, so switching costs no more than the product
    `U diag(δ) Vᵀ`.

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
        self._waiting: list[Portion] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def run(self, wanted: Sequence[PictureSettings]) -> Iterator[Event]:
        """Draw pictures, those that may share a batch together, reporting every step.

        Closing the iterator takes what waits off the queue and stops the drawing after the current
        step, unless others draw in the same batch; it does not wait.

        Raises:
            SettingError: a setting is out of range; nothing is drawn.
            LibraryError: an adapter is not there, is damaged or does not fit the base model.
        """
        for settings in wanted:
            settings.check(self._limits)
            for name in settings.adapters:
                self._library.path(name)
        portions = in_portions(wanted, self._limits.max_images)
        if not portions:
            return
        visit = portions[0].visit
        with self._lock:
            self._waiting += portions
        for _ in portions:
            # One call per portion is enough, though none need draw its own.
            self._thread.submit(self._draw_next)
        yield from visit.stream()

    def _draw_next(self) -> None:
        """Draw the batch whose turn it is, if anyone is still waiting."""
        taken = self._take()
        try:
            versions = self._drop_outdated()
            batch = [portion for portion in taken if self._loads(portion, versions)]
            images = self._draw(batch) if batch else []
        except Exception as error:
            for portion in taken:
                portion.visit.fail(error)
            return
        for portion, own in zip(batch, shares(batch, images), strict=True):
            portion.finish(own)

    def _take(self) -> list[Portion]:
        """Take the first portion off the queue, and those behind it that fit into its batch."""
        with self._lock:
            waiting = [portion for portion in self._waiting if not portion.visit.over.is_set()]
            taken: list[Portion] = []
            room = self._limits.max_images
            for portion in waiting:
                if len(portion.wanted) <= room and portion.common == waiting[0].common:
                    taken.append(portion)
                    room -= len(portion.wanted)
            self._waiting = [portion for portion in waiting if portion not in taken]
        return taken

    def _draw(self, batch: list[Portion]) -> list[Image.Image]:
        """The pictures of several portions, in order."""
        wanted = [settings for portion in batch for settings in portion.wanted]
        common = wanted[0]
        chosen = SCHEDULERS[common.scheduler]
        config = self._own_scheduler.config
        # A new one each time: schedulers keep state, and some carry it into the next picture.
        self._pipe.scheduler = (chosen or type(self._own_scheduler)).from_config(config)
        with self._pipe.svfit_adapters_per_prompt([settings.adapters for settings in wanted]):
            images: list[Image.Image] = self._pipe(
                prompt=[settings.prompt for settings in wanted],
                negative_prompt=[settings.negative_prompt for settings in wanted],
                num_inference_steps=common.steps,
                guidance_scale=common.guidance_scale,
                width=common.width,
                height=common.height,
                # On the CPU, where a seed means the same noise whatever the device.
                generator=[torch.Generator().manual_seed(settings.seed) for settings in wanted],
                callback_on_step_end=partial(_after_step, batch),
            ).images
        return images

    def _drop_outdated(self) -> dict[str, FileVersion]:
        """Drop the adapters that have changed on disk, and return what is there now."""
        versions = self._library.versions()
        outdated = [name for name, seen in self._loaded.items() if versions.get(name) != seen]
        for name in outdated:
            self._pipe.delete_svfit_adapters(name)
            del self._loaded[name]
        return versions

    def _loads(self, portion: Portion, versions: Mapping[str, FileVersion]) -> bool:
        """Load a portion's adapters; what is wrong with them is its visitor's concern alone."""
        portion.progress(0, portion.wanted[0].steps)
        try:
            for name in dict.fromkeys(n for s in portion.wanted for n in s.adapters):
                if name not in self._loaded:
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


def _after_step(
    batch: list[Portion], pipe: Any, index: int, _: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    """The pipeline's `callback_on_step_end`."""
    if all(portion.visit.over.is_set() for portion in batch):
        pipe._interrupt = True  # diffusers' own way to leave the loop
        return tensors
    step, steps = index + 1, pipe.num_timesteps
    shown = step % max(1, steps // _PREVIEWS) == 0 and step < steps
    previews = preview(pipe, tensors["latents"]) if shown else ()
    for portion, own in zip(batch, shares(batch, previews), strict=True):
        portion.progress(step, steps, own)
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
