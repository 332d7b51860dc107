"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.families.family import Family, PhotoSize, Sampling
from svfit_diffusion.families.noise import NoiseSettings

_SMALL_SIDE = 256
"""Models of smaller pictures want fewer steps and less guidance than the others."""


class UNetFamily(Family):
    """What Stable Diffusion's UNets have in common."""

    denoiser = "unet"

    def check(self) -> None:
        super().check()
        if self.model.config.time_cond_proj_dim is not None:
            raise ConfigError(
                "the base model's UNet was distilled and is told the guidance scale; train on the "
                "model that it was distilled from"
            )

    def noise_process(self, settings: NoiseSettings) -> Diffusion:
        return Diffusion.of(self.pipe.scheduler, settings)

    @property
    def size_multiple(self) -> int:
        # The UNet halves the latent once per level but the last.
        levels = len(self.model.config.block_out_channels)
        return int(self.pipe.vae_scale_factor) * 2 ** (levels - 1)


class StableDiffusion(UNetFamily):
    """Stable Diffusion 1.x and 2.x: one CLIP, ε or v."""

    trained_text_encoders = ("text_encoder",)

    @property
    def sampling(self) -> Sampling:
        if self.native_size < _SMALL_SIDE:
            return Sampling(steps=20, guidance_scale=2.5)
        return Sampling(steps=25, guidance_scale=7.5)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, _ = self.pipe.encode_prompt(
            prompts, self.text_device, 1, do_classifier_free_guidance=False
        )
        return Conditions({"prompt_embeds": embeddings})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(noisy, time, conditions["prompt_embeds"], return_dict=False)
        return prediction
