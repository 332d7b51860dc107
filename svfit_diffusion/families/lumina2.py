"""Lumina Image 2.0."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class Lumina2(Family):
    """Gemma 2 behind a system prompt; time from noise to image, and a negated prediction."""

    float16 = False  # Gemma's activations overflow
    sampling = Sampling(steps=30, guidance_scale=4.0)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, mask, _, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.text_device
        )
        return Conditions({"prompt_embeds": embeddings, "mask": mask})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        steps = self.pipe.scheduler.config.num_train_timesteps
        (prediction,) = self.model(
            hidden_states=noisy,
            timestep=1 - self._timesteps(time) / steps,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_attention_mask=conditions["mask"],
            return_dict=False,
        )
        negated: Tensor = -prediction
        return negated
