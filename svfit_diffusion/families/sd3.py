"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class StableDiffusion3(Family):
    """Two CLIPs, and T5 unless it was left out."""

    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trained_text_encoders = ("text_encoder", "text_encoder_2")
    optional_text_encoders = ("text_encoder_3",)
    weighting_scheme = "logit_normal"
    sampling = Sampling(steps=28, guidance_scale=7.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.text_device, do_classifier_free_guidance=False
        )
        return Conditions({"prompt_embeds": embeddings, "pooled": pooled})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(
            hidden_states=noisy,
            timestep=self._timesteps(time),
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )
        return prediction
