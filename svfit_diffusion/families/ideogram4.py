"""Ideogram 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling
from svfit_diffusion.families.flow import Flow
from svfit_diffusion.families.latents import per_channel
from svfit_diffusion.families.noise import NoiseProcess, NoiseSettings

TEXT_TOKENS = 1024
"""Places for text before the image; the pipeline has 2048, but hides those that it pads."""


@dataclass(frozen=True)
class SizedFlow(Flow):
    """A flow whose larger images are noisier: σ is logit-normal with a mean of their size.

    Attributes:
        pixels: of the image, per element of a channel of its latents.
    """

    pixels: int

    def draw(self, latent: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(latent.shape, generator=generator)
        mean = 0.5 * math.log(latent[0].numel() * self.pixels / 512**2)
        return noise, torch.sigmoid(mean + 1.5 * torch.randn((), generator=generator))


class Ideogram4(Family):
    """Many layers of Qwen3-VL in one sequence with the image; time from noise to image, negated."""

    packing = 4
    draws_latents = False
    native_size = 2048
    sampling = Sampling(
        steps=48,
        guidance_scale=7.0,
        negative_prompt=False,
        always={"guidance_schedule": None, "max_sequence_length": TEXT_TOKENS},
    )

    def noise_process(self, settings: NoiseSettings) -> NoiseProcess:
        if settings.weighting_scheme is not None:
            return super().noise_process(settings)
        flow = Flow.of(self.pipe.scheduler, replace(settings, weighting_scheme="none"))
        return SizedFlow(flow.sigmas, flow.settings, self.size_multiple**2)

    def scale_latents(self, raw: Tensor) -> Tensor:
        vae, (n, channels, height, width) = self.pipe.vae, raw.shape
        grid = raw.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
        patches = grid.reshape(n, 4 * channels, height // 2, width // 2)
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        return (patches - per_channel(vae.bn.running_mean, raw)) / per_channel(std, raw)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _, segments, _ = self.pipe.encode_prompt(
            prompts, 1, 1, TEXT_TOKENS, self.text_device
        )
        # Padding comes first, and last a place for the image of one token.
        lengths = (segments >= 0).sum(dim=1) - 1
        rows = [
            row[TEXT_TOKENS - int(length) : TEXT_TOKENS]
            for row, length in zip(embeddings, lengths, strict=True)
        ]
        return Conditions({"prompt_embeds": rows})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        rows, tokens = conditions["prompt_embeds"], noisy.flatten(2).transpose(1, 2)
        n, places, channels = tokens.shape
        text = torch.stack(
            [torch.nn.functional.pad(row, (0, 0, TEXT_TOKENS - len(row), places)) for row in rows]
        )
        position_ids, segment_ids, indicator = self.pipe._prepare_ids(
            [len(row) for row in rows], *noisy.shape[2:], TEXT_TOKENS, noisy.device
        )
        steps = self.pipe.scheduler.config.num_train_timesteps
        (prediction,) = self.model(
            hidden_states=torch.cat([tokens.new_zeros(n, TEXT_TOKENS, channels), tokens], dim=1),
            timestep=(1 - self._timesteps(time) / steps).to(noisy.dtype),
            encoder_hidden_states=text,
            position_ids=position_ids,
            segment_ids=segment_ids,
            indicator=indicator,
            return_dict=False,
        )
        return -prediction[:, TEXT_TOKENS:].transpose(1, 2).reshape_as(noisy)
