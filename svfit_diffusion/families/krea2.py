"""Krea 2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import PhotoSize, Sampling
from svfit_diffusion.families.qwen_image import QwenLatents


class Krea2(QwenLatents):
    """Several layers of Qwen3-VL, each on its own, with a mask."""

    native_size = 1024

    @property
    def sampling(self) -> Sampling:
        if self.pipe.config.is_distilled:
            return Sampling(steps=8, guidance_scale=0.0)
        return Sampling(steps=28, guidance_scale=4.5)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, mask = self.pipe.encode_prompt(prompts, device=self.text_device)
        return Conditions({"prompt_embeds": embeddings, "mask": mask})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        pipe, factor, text = self.pipe, self.pipe.vae_scale_factor, conditions["prompt_embeds"]
        n, channels, height, width = noisy.shape
        side = pipe.patch_size
        (prediction,) = self.model(
            hidden_states=pipe._pack_latents(noisy, n, channels, height, width),
            encoder_hidden_states=text,
            timestep=(self._timesteps(time) / 1000).to(noisy.dtype),
            position_ids=pipe.prepare_position_ids(
                text.shape[1], height // side, width // side, noisy.device
            ),
            encoder_attention_mask=conditions["mask"],
            return_dict=False,
        )
        unpacked: Tensor = pipe._unpack_latents(prediction, height * factor, width * factor)
        return unpacked.squeeze(2)
