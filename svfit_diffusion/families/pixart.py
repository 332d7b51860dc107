"""PixArt-α and PixArt-Σ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.families.family import Family, PhotoSize, Sampling
from svfit_diffusion.families.noise import NoiseSettings


class PixArtSigma(Family):
    """T5 with its mask; ε, and beside it a variance that nobody asks for."""

    # It draws in one of a list of sizes and scales the image, unless told not to.
    sampling = Sampling(steps=20, guidance_scale=4.5, always={"use_resolution_binning": False})

    def noise_process(self, settings: NoiseSettings) -> Diffusion:
        return Diffusion.of(self.pipe.scheduler, settings)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, mask, _, _ = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.text_device,
            clean_caption=True,  # the default of drawing, not of encoding
        )
        return Conditions({"prompt_embeds": embeddings, "mask": mask})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        (prediction,) = self.model(
            noisy,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_attention_mask=conditions["mask"],
            timestep=time,
            added_cond_kwargs=self._shapes(noisy, sizes),
            return_dict=False,
        )
        return prediction[:, : noisy.shape[1]]

    def _shapes(self, noisy: Tensor, sizes: Sequence[PhotoSize]) -> dict[str, Tensor | None]:
        """What the denoiser is told of the images' shapes."""
        return {"resolution": None, "aspect_ratio": None}


class PixArtAlpha(PixArtSigma):
    """The one before, which at 1024 pixels is told the images' shapes."""

    def _shapes(self, noisy: Tensor, sizes: Sequence[PhotoSize]) -> dict[str, Tensor | None]:
        if self.model.config.sample_size != 128:
            return super()._shapes(noisy, sizes)
        resolution = torch.tensor([size.target for size in sizes])
        ratio = resolution[:, :1] / resolution[:, 1:]
        return {"resolution": resolution.to(noisy), "aspect_ratio": ratio.to(noisy)}
