"""FLUX.1: dev, schnell, and Kontext, with an image to edit or without."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.families.conditions import Conditions
from svfit_diffusion.families.family import TRAINING_GUIDANCE, Family, PhotoSize, Sampling

logger = logging.getLogger(__name__)

_TEXT_TOKENS = 512
"""Of a prompt, in the pipeline's calls."""


class FluxTokens(Family):
    """What FLUX.1 and its kin have in common: latents packed two by two into tokens with places."""

    packing = 4

    def _denoise_tokens(
        self, noisy: Tensor, time: Tensor, references: Sequence[Tensor] | None = None, **text: Any
    ) -> Tensor:
        """The unpacked prediction, given images to edit and what is told of the prompts."""
        factor = self.pipe.vae_scale_factor
        height, width = noisy.shape[-2:]
        tokens, places = self._tokens(noisy)
        count = tokens.shape[1]
        if references is not None:
            beside, their_places = self._tokens(torch.stack([*references]))
            their_places[..., 0] = 1
            tokens, places = torch.cat([tokens, beside], 1), torch.cat([places, their_places])
        (prediction,) = self.model(
            hidden_states=tokens,
            timestep=self._timesteps(time).to(noisy.dtype) / 1000,
            img_ids=places,
            return_dict=False,
            **text,
        )
        unpacked: Tensor = self.pipe._unpack_latents(
            prediction[:, :count], height * factor, width * factor, factor
        )
        return unpacked

    def _tokens(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents as tokens `(n, length, 4c)`, and the place of each."""
        n, channels, height, width = latents.shape
        packed: Tensor = self.pipe._pack_latents(latents, n, channels, height, width)
        places: Tensor = self.pipe._prepare_latent_image_ids(
            n, height // 2, width // 2, latents.device, latents.dtype
        )
        return packed, places


class Flux(FluxTokens):
    """CLIP and T5."""

    text_encoders = ("text_encoder", "text_encoder_2")
    trained_text_encoders = ("text_encoder",)

    def check(self) -> None:
        super().check()
        if not self._is_guided:
            logger.warning(
                "this FLUX.1 has no guidance embedding, so it is schnell, which was distilled to "
                "few steps: what is trained on dev usually works on schnell too, and better"
            )

    @property
    def _is_guided(self) -> bool:
        return bool(self.model.config.guidance_embeds)

    @property
    def native_size(self) -> int:
        # The pipeline's own default is 1024 pixels, whatever the base.
        return int(self.pipe.vae.config.sample_size)

    @property
    def _text_tokens(self) -> int:
        """T5's tokens of a prompt, padding included: the pipeline's, where T5 takes so many."""
        return min(_TEXT_TOKENS, int(self.pipe.tokenizer_2.model_max_length))

    @property
    def sampling(self) -> Sampling:
        steps, guidance_scale = (28, 3.5) if self._is_guided else (4, 0.0)
        always = {"max_sequence_length": self._text_tokens}
        return Sampling(steps, guidance_scale, negative_prompt=False, always=always)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        embeddings, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.text_device, max_sequence_length=self._text_tokens
        )
        return Conditions({"prompt_embeds": embeddings, "pooled": pooled})

    def _denoise(
        self, noisy: Tensor, time: Tensor, conditions: Conditions, sizes: Sequence[PhotoSize]
    ) -> Tensor:
        text = conditions["prompt_embeds"]
        return self._denoise_tokens(
            noisy,
            time,
            conditions.references,
            guidance=torch.full_like(time, TRAINING_GUIDANCE) if self._is_guided else None,
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
        )


class FluxKontext(Flux):
    """Kontext; without an image to edit it is FLUX.1 dev."""

    takes_references = True

    def generation_arguments(
        self, size: tuple[int, int], steps: int | None = None, guidance_scale: float | None = None
    ) -> dict[str, Any]:
        # It draws any size as one of this area.
        arguments = super().generation_arguments(size, steps, guidance_scale)
        return arguments | {"max_area": size[0] * size[1]}
