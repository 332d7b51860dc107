"""FLUX.2: dev, and klein."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import TRAINING_GUIDANCE, Family, PhotoSize, Sampling
from svfit_diffusion.families.latents import per_channel

logger = logging.getLogger(__name__)


class Flux2(Family):
    """Hidden layers of Mistral; patches of latents, normalised by the autoencoder's statistics."""

    packing = 4
    draws_latents = False

    @property
    def sampling(self) -> Sampling:
        return Sampling(steps=50, guidance_scale=4.0, negative_prompt=False)

    def scale_latents(self, raw: Tensor) -> Tensor:
        vae, patches = self.pipe.vae, self.pipe._patchify_latents(raw)
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        scaled: Tensor = (patches - per_channel(vae.bn.running_mean, raw)) / per_channel(std, raw)
        return scaled

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _ = self.pipe.encode_prompt(prompts, device=self.text_device)
        return Conditions({"prompt_embeds": embeddings})

    def _guidance(self, time: Tensor) -> Tensor | None:
        return torch.full_like(time, TRAINING_GUIDANCE)

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        pipe, text = self.pipe, conditions["prompt_embeds"]
        (prediction,) = self.model(
            hidden_states=pipe._pack_latents(noisy),
            timestep=self._timesteps(time).to(noisy.dtype) / 1000,
            guidance=self._guidance(time),
            encoder_hidden_states=text,
            txt_ids=pipe._prepare_text_ids(text).to(noisy.device),
            img_ids=pipe._prepare_latent_ids(noisy).to(noisy.device),
            return_dict=False,
        )
        # Tokens go row by row.
        return prediction.transpose(1, 2).reshape_as(noisy)


class Flux2Klein(Flux2):
    """Hidden layers of Qwen3, and no embedding of the guidance."""

    def check(self) -> None:
        super().check()
        if self._is_distilled:
            logger.warning(
                "this FLUX.2 klein was distilled to few steps: what is trained on the klein base "
                "model usually works on it too, and better"
            )

    @property
    def _is_distilled(self) -> bool:
        return bool(self.pipe.config.is_distilled)

    @property
    def sampling(self) -> Sampling:
        if self._is_distilled:
            return Sampling(steps=4, guidance_scale=1.0, negative_prompt=False)
        return super().sampling

    def _guidance(self, time: Tensor) -> Tensor | None:
        return None
