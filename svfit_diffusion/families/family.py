"""What every kind of pipeline tells the trainer; a family overrides where it differs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.flow import Flow, scheduler_timesteps
from svfit_diffusion.families.latents import raw_moments
from svfit_diffusion.families.noise import NoiseProcess, NoiseSettings

TRAINING_GUIDANCE = 3.5
"""Guidance that a denoiser with an embedding for it is told in training, as diffusers does."""


@dataclass(frozen=True)
class PhotoSize:
    """How a training image was cut from its photo; all in pixels, height before width.

    Attributes:
        original: size of the photo.
        top_left: where the crop begins, in the photo as resized for it.
        target: size of the crop, which is what the denoiser sees.
    """

    original: tuple[int, int]
    top_left: tuple[int, int]
    target: tuple[int, int]

    @staticmethod
    def whole(height: int, width: int) -> PhotoSize:
        """An image of this size that was not cut."""
        return PhotoSize((height, width), (0, 0), (height, width))


@dataclass(frozen=True)
class Sampling:
    """How a pipeline draws, unless told otherwise.

    Attributes:
        steps: sampling steps.
        guidance_scale: strength of guidance.
        guidance_argument: the name of that strength in the pipeline's call.
        negative_prompt: whether a call takes one.
        always: arguments that every call is given.
    """

    steps: int
    guidance_scale: float
    guidance_argument: str = "guidance_scale"
    negative_prompt: bool = True
    always: dict[str, Any] = field(default_factory=dict)

    def arguments(
        self, size: tuple[int, int], steps: int | None = None, guidance_scale: float | None = None
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call, all but prompts and generators.

        Args:
            size: height and width in pixels.
            steps: sampling steps; these if not given.
            guidance_scale: strength of guidance; this one if not given.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        return {
            "height": size[0],
            "width": size[1],
            "num_inference_steps": steps or self.steps,
            self.guidance_argument: scale,
            **self.always,
        }


class Family(ABC):
    """A pipeline as the trainer sees it.

    Args:
        pipe: the pipeline.

    Attributes:
        denoiser: component that denoises.
        text_encoders: components that prompts are encoded with; gradients reach all of them.
        trained_text_encoders: those that are usually trained along.
        optional_text_encoders: those that the pipeline can do without.
        packing: how many latents' channels become one of the denoiser's inputs.
        draws_latents: whether raw latents are drawn from the autoencoder's posterior; its mode
            otherwise.
        weighting_scheme: the flow's density of times, see `NoiseSettings`.
        float16: whether all components compute safely in float16.
        needs_training_mode: whether the denoiser's gradients are whole in training mode alone.
        checkpointing: whether it computes the same under gradient checkpointing.
        takes_references: whether the denoiser can be shown an image to edit.
    """

    denoiser: ClassVar[str] = "transformer"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    trained_text_encoders: ClassVar[tuple[str, ...]] = ()
    optional_text_encoders: ClassVar[tuple[str, ...]] = ()
    packing: ClassVar[int] = 1
    draws_latents: ClassVar[bool] = True
    weighting_scheme: ClassVar[str] = "none"
    float16: ClassVar[bool] = True
    needs_training_mode: ClassVar[bool] = False
    checkpointing: ClassVar[bool] = True
    takes_references: ClassVar[bool] = False

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def model(self) -> Any:
        """The denoiser."""
        return getattr(self.pipe, self.denoiser)

    @property
    def encoders(self) -> dict[str, Any]:
        """The text encoders that this pipeline has, by component."""
        found = {name: getattr(self.pipe, name) for name in self.text_encoders}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def text_device(self) -> torch.device:
        """Where prompts are encoded."""
        device: torch.device = next(iter(self.encoders.values())).device
        return device

    # Before any work

    def check(self) -> None:
        """Make sure that this pipeline can be trained.

        Raises:
            ConfigError: it is a variant that cannot, lacks a component, or has a scheduler of
                another kind.
        """
        for name in (self.denoiser, "vae", *self.text_encoders):
            if getattr(self.pipe, name) is None and name not in self.optional_text_encoders:
                raise ConfigError(
                    f"the base model was loaded without its {name}, which training needs; "
                    f"load the {type(self.pipe).__name__} whole"
                )
        config = self.pipe.vae.config
        latent = self.packing * (config.get("latent_channels") or config.z_dim)
        if self.model.config.in_channels != latent:
            raise ConfigError(
                f"the base model's {self.denoiser} takes {self.model.config.in_channels} channels, "
                f"its latents have {latent}: train on the text-to-image base; the adapter then "
                f"works on its inpainting pipelines too"
            )
        self.noise_process(NoiseSettings())

    def noise_process(self, settings: NoiseSettings) -> NoiseProcess:
        """How noise is put on latents.

        Raises:
            ConfigError: settings that are for another kind of model, or a scheduler that is.
        """
        scheme = settings.weighting_scheme or self.weighting_scheme
        return Flow.of(self.pipe.scheduler, replace(settings, weighting_scheme=scheme))

    @property
    def size_multiple(self) -> int:
        """Both sides of a training image must be a multiple of this many pixels."""
        packed = math.isqrt(self.packing)
        patch = packed if packed > 1 else self.model.config.get("patch_size", 2)
        return int(self.pipe.vae_scale_factor) * int(patch)

    @property
    def native_size(self) -> int:
        """The side in pixels of the square images that the base was made for."""
        own = getattr(self.pipe, "default_sample_size", None) or self.model.config.sample_size
        return int(own) * int(self.pipe.vae_scale_factor)

    # What goes in

    def encode_photo(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the raw latents of images, to be drawn from.

        Args:
            pixels: `(n, 3, height, width)` in −1..1.

        Returns:
            Two `(n, c, h, w)`, float32, on the CPU; the deviation is zero where the family takes
            the mode.
        """
        mean, std = raw_moments(self.pipe.vae, pixels)
        return mean, std if self.draws_latents else torch.zeros_like(std)

    def scale_latents(self, raw: Tensor) -> Tensor:
        """Raw latents `(n, c, h, w)` as the denoiser knows them, not yet packed."""
        config = self.pipe.vae.config
        return (raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """What the denoiser is told of each prompt; differentiable in the text encoders."""

    # What comes out

    def predict(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        """Call the denoiser, where it is and in its precision, as the pipeline does.

        Args:
            noisy: `(n, c, h, w)`.
            time: `(n,)`, times of the family's noise process.
            conditions: those of n prompts.
            sizes: n of them.

        Returns:
            `(n, c, h, w)`: what the pipeline hands its scheduler, unpacked and with its sign.
        """
        device, dtype = self.model.device, self.model.dtype
        return self._denoise(
            noisy.to(device, dtype), time.to(device), conditions.to(device, dtype), sizes
        )

    @abstractmethod
    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        """`predict` of inputs in the denoiser's place and precision."""

    def _timesteps(self, time: Tensor) -> Tensor:
        """The scheduler's timesteps `(n,)` for shares of noise `(n,)`."""
        return scheduler_timesteps(self.pipe.scheduler, time)

    # Drawing

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How the pipeline draws, unless told otherwise."""

    def generation_arguments(
        self, size: tuple[int, int], steps: int | None = None, guidance_scale: float | None = None
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call, as `Sampling.arguments`."""
        return self.sampling.arguments(size, steps, guidance_scale)
