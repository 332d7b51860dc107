"""Chroma."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import PhotoSize, Sampling
from svfit_diffusion.families.flux import FluxTokens


class Chroma(FluxTokens):
    """FLUX.1 without its CLIP and its guidance, and with a mask over T5's padding."""

    checkpointing = False  # diffusers' model loses its mask on that way
    sampling = Sampling(steps=35, guidance_scale=5.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _, mask, *_ = self.pipe.encode_prompt(
            prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        return Conditions({"prompt_embeds": embeddings, "mask": mask})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        text, mask = conditions["prompt_embeds"], conditions["mask"]
        tokens = noisy[0, 0].numel() // self.packing
        return self._denoise_tokens(
            noisy,
            time,
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1),
        )
