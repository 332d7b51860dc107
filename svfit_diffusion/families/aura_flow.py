"""AuraFlow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class AuraFlow(Family):
    """T5 of Pile, with its padding zeroed."""

    native_size = 1024
    sampling = Sampling(steps=50, guidance_scale=3.5)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.text_device
        )
        return Conditions({"prompt_embeds": embeddings})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(
            noisy,
            encoder_hidden_states=conditions["prompt_embeds"],
            timestep=(self._timesteps(time) / 1000).to(noisy.dtype),
            return_dict=False,
        )
        return prediction
