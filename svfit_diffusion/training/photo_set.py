"""Photos made ready for training: latents and conditions, on demand or kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from svfit_diffusion.families import Conditions, Family, PhotoSize
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training.crops import bucket, cut
from svfit_diffusion.training.draws import Draw, draw_example
from svfit_diffusion.training.photos import Photo

_CENTRE = (0.5, 0.5)
_Asked = TypeVar("_Asked", bound=Hashable)


@dataclass(frozen=True)
class Framing:
    """How photos are cut.

    Attributes:
        sizes: height and width in pixels of each photo's crop.
        center_crop: whether it lies at the centre, or at random.
        random_flip: whether half of the examples are mirrored.
    """

    sizes: list[tuple[int, int]]
    center_crop: bool
    random_flip: bool


@dataclass(frozen=True)
class Latent:
    """One example.

    Attributes:
        values: `(c, h, w)` float32, as the denoiser knows latents.
        size: how it was cut from its photo.
        mask: `(1, h, w)` in 0..1 where the subject is, if the photo has a mask.
    """

    values: Tensor
    size: PhotoSize
    mask: Tensor | None


class PhotoSet:
    """Photos ready for training.

    Args:
        photos: the photos.
        family: encodes them.
        framing: how they are cut.
        stream: which random stream draws from this set.
        proportion_empty_prompts: share of the examples whose prompt is left out.
        scratch: where what is encoded is kept.
    """

    def __init__(
        self,
        photos: list[Photo],
        family: Family,
        framing: Framing,
        stream: int,
        proportion_empty_prompts: float,
        scratch: Scratch,
    ) -> None:
        self.photos = photos
        self._places = [i for i, photo in enumerate(photos) for _ in range(photo.repeats)]
        self.family = family
        self._framing = framing
        self._stream = stream
        self._empty = proportion_empty_prompts
        self._scratch = scratch
        self._sizes: dict[tuple[int, bool], PhotoSize] = {}
        self._conditions: dict[str, Conditions] = {}

    def cache_latents(self, *, show_progress: bool = False) -> None:
        """Encode every photo, mirrored too if flips are on."""
        about = f"Encoding {len(self.photos)} {'class images' if self._stream else 'photos'}"
        for index in tqdm(range(len(self.photos)), desc=about, disable=not show_progress):
            for flip in (False, True) if self._framing.random_flip else (False,):
                tensors, size = self._encode(index, flip, _CENTRE)
                self._scratch.put((self._stream, index, flip), tensors)
                self._sizes[index, flip] = size

    @torch.no_grad()
    def cache_conditions(self, *, show_progress: bool = False) -> None:
        """Encode every prompt."""
        prompts = {photo.prompt for photo in self.photos} | ({""} if self._empty else set())
        for prompt in tqdm(sorted(prompts), desc="Encoding prompts", disable=not show_progress):
            self._conditions[prompt] = self.family.encode_prompts([prompt])

    def draw(self, seed: int, position: int) -> Draw:
        """The example at `position` of this set's stream."""
        draw = draw_example(seed, position, len(self._places), self._stream)
        return replace(draw, index=self._places[draw.index])

    def latent(self, draw: Draw) -> Latent:
        """The photo drawn, as the denoiser knows it, drawn from its posterior."""
        kept, size = self._kept(draw)
        noise = torch.randn(kept["mean"].shape, generator=draw.generator)
        raw = kept["mean"] + kept["std"] * noise
        values = self.family.scale_latents(raw[None])[0]
        mask = kept.get("mask")
        if mask is not None:
            mask = F.interpolate(mask[None], values.shape[-2:], mode="area")[0]
        return Latent(values, size, mask)

    def _kept(self, draw: Draw) -> tuple[dict[str, Tensor], PhotoSize]:
        """The photo drawn as it was encoded before, or is now."""
        flip = draw.flip and self._framing.random_flip
        kept = self._scratch.get((self._stream, draw.index, flip))
        if kept is not None:
            return kept, self._sizes[draw.index, flip]
        return self._encode(draw.index, flip, _CENTRE if self._framing.center_crop else draw.crop)

    def prompts(self, draws: list[Draw]) -> list[str]:
        """The prompts of the photos drawn; empty where they are left out."""
        return ["" if d.drop < self._empty else self.photos[d.index].prompt for d in draws]

    @property
    def keeps_conditions(self) -> bool:
        """Whether prompts have been encoded once for all."""
        return bool(self._conditions)

    def conditions(self, draws: list[Draw], told: Conditions | None = None) -> Conditions:
        """What the denoiser is told of the photos drawn.

        Args:
            draws: which.
            told: of their prompts, if these have been encoded for the purpose.
        """
        prompts = self.prompts(draws)
        if self._conditions:
            told = Conditions.cat([self._conditions[prompt] for prompt in prompts])
        elif told is None:
            told = encoded_once(prompts, self.family.encode_prompts)
        return told.with_references(self._references(draws))

    def _references(self, draws: list[Draw]) -> list[Tensor] | None:
        """Latents of the images to edit, cut as their photos."""
        if self.photos[0].reference_path is None:
            return None
        kept = [self._kept(draw)[0]["reference"] for draw in draws]
        return [self.family.scale_latents(raw[None])[0] for raw in kept]

    def _encode(
        self, index: int, flip: bool, at: tuple[float, float]
    ) -> tuple[dict[str, Tensor], PhotoSize]:
        """Mean and deviation of a photo's raw latent, its mask in pixels, and how it was cut."""
        photo, target = self.photos[index], self._framing.sizes[index]
        pixels, size = cut(photo.image, target, at)
        mean, std = self.family.encode_photo((pixels.flip(-1) if flip else pixels)[None])
        tensors = {"mean": mean[0].float(), "std": std[0].float()}
        if (picture := photo.mask) is not None:
            mask = (cut(picture, target, at)[0] + 1) / 2
            tensors["mask"] = mask.flip(-1) if flip else mask
        if (shown := photo.reference) is not None:
            other = cut(shown, target, at)[0]
            mode, _ = self.family.encode_photo((other.flip(-1) if flip else other)[None])
            tensors["reference"] = mode[0].float()
        return tensors, size


def encoded_once(
    asked: Sequence[_Asked], encode: Callable[[list[_Asked]], Conditions]
) -> Conditions:
    """The conditions of all that is asked, each of them encoded once."""
    different = list(dict.fromkeys(asked))
    return encode(different).select([different.index(one) for one in asked])


def photo_sets(
    family: Family,
    photos: list[list[Photo]],
    resolution: int,
    *,
    aspect_buckets: bool,
    center_crop: bool,
    random_flip: bool,
    proportion_empty_prompts: float,
    scratch: Scratch,
) -> list[PhotoSet]:
    """Photos of each kind, to be cut and encoded.

    Args:
        family: encodes them.
        photos: the subject's, and class images if there are any.
        resolution: side in pixels of a square crop.
        aspect_buckets: whether crops have the shapes of their photos instead, at that area.
        center_crop: whether crops lie at the centre, or at random.
        random_flip: whether half of the examples are mirrored.
        proportion_empty_prompts: share of the examples whose prompt is left out.
        scratch: where what is encoded is kept.
    """
    made = []
    for stream, of_kind in enumerate(photos):
        sizes = [(resolution, resolution)] * len(of_kind)
        if aspect_buckets:
            sizes = [bucket(p.size, resolution, family.size_multiple) for p in of_kind]
        framing = Framing(sizes, center_crop, random_flip)
        made.append(PhotoSet(of_kind, family, framing, stream, proportion_empty_prompts, scratch))
    return made
