"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import PhotoSize, Sampling
from svfit_diffusion.families.latents import per_channel
from svfit_diffusion.families.sd import UNetFamily


class StableDiffusionXL(UNetFamily):
    """Two CLIPs, and a UNet that is told how each photo was cut."""

    text_encoders = ("text_encoder", "text_encoder_2")
    trained_text_encoders = text_encoders
    sampling = Sampling(steps=30, guidance_scale=5.0)

    def scale_latents(self, raw: Tensor) -> Tensor:
        config = self.pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return super().scale_latents(raw)
        return (raw - per_channel(mean, raw)) * config.scaling_factor / per_channel(std, raw)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        return Conditions({"prompt_embeds": embeddings, "pooled": pooled})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        time_ids = [[*size.original, *size.top_left, *size.target] for size in sizes]
        added = {
            "text_embeds": conditions["pooled"],
            "time_ids": torch.tensor(time_ids, dtype=noisy.dtype, device=noisy.device),
        }
        (prediction,) = self.model(
            noisy,
            time,
            conditions["prompt_embeds"],
            added_cond_kwargs=added,
            return_dict=False,
        )
        return prediction
