"""Photos made ready for training: latents and text embeddings, on demand or cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import Batch, Objective
from svfit_diffusion.training.photos import Draw, Photo, draw_example, square


class PhotoSet:
    """Photos ready for training: latents on demand or cached, and text embeddings.

    Args:
        photos: the photos.
        pipe: encodes them.
        config: resolution, crops, flips, caching.
        resolution: side in pixels.
        stream: which random stream draws from this set.
    """

    def __init__(
        self, photos: list[Photo], pipe: Any, config: TrainingConfig, resolution: int, stream: int
    ) -> None:
        self.photos = photos
        self._pipe = pipe
        self._config = config
        self._resolution = resolution
        self._stream = stream
        self._moments: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self._embeddings: dict[str, Tensor] = {}

    def cache_latents(self) -> None:
        """Encode every photo, mirrored too if flips are on."""
        for index in range(len(self.photos)):
            for flip in (False, True) if self._config.random_flip else (False,):
                self._moments[index, flip] = self._encode(index, flip, (0.5, 0.5))

    def cache_embeddings(self) -> None:
        """Encode every prompt."""
        with torch.no_grad():
            for prompt in {photo.prompt for photo in self.photos}:
                self._embeddings[prompt] = self._embed([prompt])

    def draw(self, seed: int, position: int) -> Draw:
        """The example at `position` of this set's stream."""
        return draw_example(seed, position, len(self.photos), self._stream)

    def latent(self, draw: Draw) -> Tensor:
        """A latent `(c, h, w)` float32 of the photo drawn, scaled as the UNet expects."""
        flip = draw.flip and self._config.random_flip
        if (draw.index, flip) in self._moments:
            mean, std = self._moments[draw.index, flip]
        else:
            at = (0.5, 0.5) if self._config.center_crop else draw.crop
            mean, std = self._encode(draw.index, flip, at)
        noise = torch.randn(mean.shape, generator=draw.generator)
        return (mean + std * noise) * self._pipe.vae.config.scaling_factor

    def embeddings(self, draws: list[Draw]) -> Tensor:
        """Text embeddings `(n, length, width)` of the prompts of the photos drawn."""
        prompts = [self.photos[draw.index].prompt for draw in draws]
        if self._embeddings:
            return torch.cat([self._embeddings[prompt] for prompt in prompts])
        different = list(dict.fromkeys(prompts))
        return self._embed(different)[[different.index(prompt) for prompt in prompts]]

    @torch.no_grad()
    def _encode(self, index: int, flip: bool, at: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(c, h, w)` of a photo's latent, on the CPU."""
        vae = self._pipe.vae
        pixels = square(self.photos[index].image, self._resolution, at)
        if flip:
            pixels = pixels.flip(-1)
        posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
        return posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()

    def _embed(self, prompts: list[str]) -> Tensor:
        embeddings, _ = self._pipe.encode_prompt(
            prompts, self._pipe.text_encoder.device, 1, do_classifier_free_guidance=False
        )
        return embeddings


def draw_batch(
    photo_sets: Sequence[PhotoSet], objective: Objective, seed: int, positions: Sequence[int]
) -> Batch:
    """The examples at `positions` of every set's stream, one set after the other.

    Args:
        photo_sets: instance photos, and class images if there are any.
        objective: draws noise and timesteps.
        seed: the run's seed.
        positions: 0, 1, 2, …
    """
    latents, noises, timesteps, embeddings = [], [], [], []
    for photo_set in photo_sets:
        draws = [photo_set.draw(seed, position) for position in positions]
        for draw in draws:
            latents.append(photo_set.latent(draw))
            noise, timestep = objective.draw(latents[-1], draw.generator)
            noises.append(noise)
            timesteps.append(timestep)
        embeddings.append(photo_set.embeddings(draws))
    return Batch(
        torch.stack(latents), torch.stack(noises), torch.stack(timesteps), torch.cat(embeddings)
    )
