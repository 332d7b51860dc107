"""Sana."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import Family, PhotoSize, Sampling


class Sana(Family):
    """Gemma 2 behind a long instruction; a deep autoencoder that leaves nothing to chance."""

    float16 = False  # Gemma's activations overflow
    # It draws in one of a list of sizes and scales the image, unless told not to.
    sampling = Sampling(steps=20, guidance_scale=4.5, always={"use_resolution_binning": False})

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        # The instruction is the default of drawing, not of encoding.
        drawing = inspect.signature(self.pipe.__call__).parameters
        embeddings, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.text_device,
            complex_human_instruction=drawing["complex_human_instruction"].default,
        )
        return Conditions({"prompt_embeds": embeddings, "mask": mask})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(
            noisy,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_attention_mask=conditions["mask"],
            timestep=self._timesteps(time) * self.model.config.timestep_scale,
            return_dict=False,
        )
        # The second half would be a variance.
        return prediction[:, : noisy.shape[1]]
