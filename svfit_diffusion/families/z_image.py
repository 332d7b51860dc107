"""Z-Image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class ZImage(Family):
    """Qwen3; lists instead of batches, time from noise to image, and a negated prediction."""

    draws_latents = False
    native_size = 1024
    sampling = Sampling(steps=50, guidance_scale=5.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _ = self.pipe.encode_prompt(
            list(prompts),  # it writes into its list
            device=self.text_device,
            do_classifier_free_guidance=False,
        )
        return Conditions({"prompt_embeds": embeddings})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (predictions,) = self.model(
            list(noisy.unsqueeze(2)),
            (1000 - self._timesteps(time)) / 1000,
            conditions["prompt_embeds"],
            return_dict=False,
        )
        return -torch.stack(predictions).squeeze(2)
