"""Ovis-Image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import PhotoSize, Sampling
from svfit_diffusion.families.flux import FluxTokens


class OvisImage(FluxTokens):
    """Qwen3 behind a system prompt; the text lies along the diagonal of the image's places."""

    sampling = Sampling(steps=50, guidance_scale=5.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, *_ = self.pipe.encode_prompt(
            prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        return Conditions({"prompt_embeds": embeddings})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        text = conditions["prompt_embeds"]
        along = torch.arange(text.shape[1], device=text.device, dtype=text.dtype)
        return self._denoise_tokens(
            noisy,
            time,
            encoder_hidden_states=text,
            txt_ids=torch.stack([torch.zeros_like(along), along, along], dim=1),
        )
