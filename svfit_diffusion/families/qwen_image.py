"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import TRAINING_GUIDANCE, Family, PhotoSize, Sampling
from svfit_diffusion.families.latents import per_channel, raw_moments


class QwenLatents(Family):
    """The autoencoder of Qwen-Image, which sees images as videos of one frame."""

    packing = 4

    def encode_photo(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = raw_moments(self.pipe.vae, pixels.unsqueeze(2))
        return mean.squeeze(2), std.squeeze(2)

    def scale_latents(self, raw: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return (raw - per_channel(config.latents_mean, raw)) / per_channel(config.latents_std, raw)


class QwenImage(QwenLatents):
    """Qwen2.5-VL, whose prompts keep their own lengths; latents packed two by two."""

    sampling = Sampling(steps=50, guidance_scale=4.0, guidance_argument="true_cfg_scale")

    def generation_arguments(
        self, size: tuple[int, int], steps: int | None = None, guidance_scale: float | None = None
    ) -> dict[str, Any]:
        arguments = super().generation_arguments(size, steps, guidance_scale)
        # Without a negative prompt it draws unguided, whatever the scale.
        is_guided = arguments["true_cfg_scale"] > 1
        return arguments | ({"negative_prompt": " "} if is_guided else {})

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, mask = self.pipe.encode_prompt(
            prompts,
            device=self.text_device,
            max_sequence_length=512,  # the default of drawing, not of encoding
        )
        if mask is None:
            return Conditions({"prompt_embeds": list(embeddings)})
        rows = [row[: int(kept.sum())] for row, kept in zip(embeddings, mask, strict=True)]
        return Conditions({"prompt_embeds": rows})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        pipe, factor, rows = self.pipe, self.pipe.vae_scale_factor, conditions["prompt_embeds"]
        n, channels, height, width = noisy.shape
        mask = pad_sequence([torch.ones_like(row[:, 0], dtype=torch.long) for row in rows], True)
        is_guided = self.model.config.guidance_embeds
        (prediction,) = self.model(
            hidden_states=pipe._pack_latents(noisy, n, channels, height, width),
            timestep=self._timesteps(time).to(noisy.dtype) / 1000,
            guidance=torch.full_like(time, TRAINING_GUIDANCE) if is_guided else None,
            encoder_hidden_states_mask=None if mask.all() else mask,
            encoder_hidden_states=pad_sequence(rows, batch_first=True),
            img_shapes=[[(1, height // 2, width // 2)]] * n,
            return_dict=False,
        )
        unpacked: Tensor = pipe._unpack_latents(prediction, height * factor, width * factor, factor)
        return unpacked.squeeze(2)
