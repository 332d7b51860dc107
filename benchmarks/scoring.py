"""What a generated image of a subject is worth, judged by features of EfficientNet-Lite0.

The subjects are drawn, so the truth is known: the same sprite composed on the prompted scene.
Likeness to the photos alone would reward a model that copies their backgrounds. Pooled features of
whole images see texture and hardly colour, and take unfamiliar subjects for scenes (0.56 right for
the true pug), so linear probes on early feature maps read the scene along the border and the
subject inside it; both are right on all true pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.report import CACHE
from samples.toybox_builder.art import ArtLibrary
from samples.toybox_builder.compose import COLOURS, compose, recolour
from samples.toybox_builder.concepts import CONCEPTS
from samples.toybox_builder.evaluate import fit_probe, probe_features
from samples.toybox_builder.features import EfficientNetLite0
from samples.toybox_builder.pool import draw_pool
from samples.toybox_builder.scenes import SCENES, draw_scene
from samples.toybox_builder.subjects import IDENTIFIER, SUBJECTS, Subject
from samples.toybox_builder.vae import to_tensor

_PROBE_SEED = 2  # the base is trained on another
_BORDER_CELLS = 4
_INSIDE_CELLS = 8
_TRUE_COMPOSITIONS = 4
_IDENTITY_PICTURES = 300
_SOFT_SIZE = 24
_SCENE_NAMES = [scene.name for scene in SCENES]


@dataclass(frozen=True)
class Scores:
    """Means over some images of a subject.

    Attributes:
        subject_fidelity: feature cosine to the true subject on the prompted scene.
        identity: probability that a linear probe gives the true subject, against the drawings of
            its class that the base was trained on, some of them recoloured.
        scene_accuracy: share in which a linear probe reads the prompted scene.
        scene_probability: probability that the probe gives it.
        photo_similarity: feature cosine to the training photos; leaked backgrounds raise it.
    """

    subject_fidelity: float
    identity: float
    scene_accuracy: float
    scene_probability: float
    photo_similarity: float


class Eye:
    """The feature network, and a linear probe for scenes on features of an image's border.

    The probe is fitted once on composed pictures and then cached.

    Args:
        work: folder of the art archives (`npm/`), downloaded if they are not there.
        probe_images: how many pictures to fit on.
    """

    def __init__(self, work: Path, probe_images: int) -> None:
        self._network = EfficientNetLite0()
        path = CACHE / f"scene_probe_{probe_images}.safetensors"
        if not path.exists():
            pool = draw_pool(work, probe_images, _PROBE_SEED, processes=1)
            labels = torch.tensor([_SCENE_NAMES.index(scene) for _, _, scene in pool.labels])
            torch.manual_seed(0)
            fitted = fit_probe(self._border_features(pool.images), labels, len(SCENES))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(fitted.state_dict(), path)
        parameters = load_file(path)
        scenes, width = parameters["weight"].shape
        self._probe = nn.Linear(width, scenes)
        self._probe.load_state_dict(parameters)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Pooled features of whole RGB images, `(n, width)` of unit length."""
        return F.normalize(probe_features(self._network, _stacked(images)), dim=1)

    @torch.no_grad()
    def scene_chances(self, images: Sequence[Image.Image]) -> Tensor:
        """Probability of each scene of the builder, `(n, scenes)`."""
        return self._probe(self._border_features(_stacked(images))).softmax(1)

    def inside_features(self, images: np.ndarray) -> Tensor:
        """Early feature maps of pictures `(n, h, w, 3)` within their border."""
        parts = []
        for maps in self._early_maps(images):
            cells = [F.adaptive_avg_pool2d(m, _INSIDE_CELLS)[:, :, 1:-1, 1:-1] for m in maps]
            parts.append(torch.cat([cell.flatten(1) for cell in cells], dim=1))
        return torch.cat(parts)

    def _border_features(self, images: np.ndarray) -> Tensor:
        """Early feature maps along the border of pictures `(n, h, w, 3)`: means and spread."""
        outer = torch.ones(_BORDER_CELLS, _BORDER_CELLS, dtype=torch.bool)
        outer[1:-1, 1:-1] = False
        parts = []
        for maps in self._early_maps(images):
            means = [F.adaptive_avg_pool2d(m, _BORDER_CELLS)[:, :, outer] for m in maps]
            squares = [F.adaptive_avg_pool2d(m**2, _BORDER_CELLS)[:, :, outer] for m in maps]
            spread = [square.mean(-1).sqrt() for square in squares]
            parts.append(torch.cat([*(mean.flatten(1) for mean in means), *spread], dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def _early_maps(self, images: np.ndarray) -> Iterator[list[Tensor]]:
        """Outputs of the second and third stage, in batches."""
        for start in range(0, len(images), 100):
            yield self._network.stage_features(to_tensor(images[start : start + 100]), 3)[1:]


class SubjectScorer:
    """Prompts that put a subject on scenes its photos do not show, and the score of the answers.

    Args:
        name: of the subject.
        eye: looks at the images.
        work: folder of the art archives.
        photos: the training photos.
        scene_count: number of scenes, and so of prompts.

    Attributes:
        prompts: what to generate.
    """

    def __init__(
        self, name: str, eye: Eye, work: Path, photos: Sequence[Image.Image], scene_count: int
    ) -> None:
        self._eye = eye
        subject = next(subject for subject in SUBJECTS if subject.name == name)
        sprites = _sprites(subject, ArtLibrary(work / "npm"))
        self._sprite = sprites[0]
        self._identity = _fit_identity(eye, sprites)
        self._scenes = [s for s in SCENES if s.name not in subject.scenes][:scene_count]
        self.prompts = [
            f"a photo of {IDENTIFIER} {subject.class_name} {scene.phrases[-1]}"
            for scene in self._scenes
        ]
        truth = eye.features(self._compositions(_TRUE_COMPOSITIONS, seed=0))
        self._truth = truth.unflatten(0, (_TRUE_COMPOSITIONS, scene_count))
        self._photos = eye.features(photos)

    def true_images(self, rounds: int) -> list[Image.Image]:
        """The subject on each prompt's scene, prompts running fastest; none that scores use."""
        return self._compositions(rounds, seed=1)

    def score(self, images: Sequence[Image.Image]) -> Scores:
        """Score images of the prompts, prompts running fastest."""
        features = self._eye.features(images)
        by_prompt = features.unflatten(0, (-1, len(self.prompts)))
        with torch.no_grad():
            identity = self._identity(self._eye.inside_features(_stacked(images))).softmax(1)
        chances = self._eye.scene_chances(images)
        wanted = torch.tensor([_SCENE_NAMES.index(scene.name) for scene in self._scenes])
        wanted = wanted.repeat(len(by_prompt))
        return Scores(
            subject_fidelity=float(torch.einsum("rpf,tpf->rtp", by_prompt, self._truth).mean()),
            identity=float(identity[:, 1].mean()),
            scene_accuracy=float((chances.argmax(1) == wanted).float().mean()),
            scene_probability=float(chances.gather(1, wanted[:, None]).mean()),
            photo_similarity=float((features @ self._photos.T).mean()),
        )

    def _compositions(self, rounds: int, seed: int) -> list[Image.Image]:
        rng = np.random.default_rng(seed)
        return [
            Image.fromarray(compose(self._sprite, draw_scene(scene, rng), rng)[0])
            for _ in range(rounds)
            for scene in self._scenes
        ]


def _sprites(subject: Subject, library: ArtLibrary) -> list[np.ndarray]:
    """The subject, then what the base was shown of its class."""
    concept = next(concept for concept in CONCEPTS if concept.name == subject.class_name)
    drawings = [(subject.art_set, subject.icon), *((s, concept.icon) for s in concept.sets)]
    sprites = [library.sprite(art_set, icon) for art_set, icon in drawings]
    return [sprite for sprite in sprites if sprite is not None]


def _fit_identity(eye: Eye, sprites: Sequence[np.ndarray]) -> nn.Module:
    """A probe that tells sprite 0 (class 1) from the others (class 0), on any scene."""
    rng = np.random.default_rng(2)
    pictures, labels = [], []
    for index in range(2 * _IDENTITY_PICTURES):
        is_subject = index % 2
        sprite = sprites[0 if is_subject else int(rng.integers(1, len(sprites)))]
        if not is_subject and rng.random() < 0.5:
            sprite = recolour(sprite, COLOURS[rng.integers(len(COLOURS))], rng)
        scene = SCENES[rng.integers(len(SCENES))]
        picture = Image.fromarray(compose(sprite, draw_scene(scene, rng), rng)[0])
        # Generated images are softer than drawn ones, which should not count.
        soft = picture.resize((_SOFT_SIZE, _SOFT_SIZE), Image.Resampling.BILINEAR)
        pictures += [picture, soft.resize(picture.size, Image.Resampling.BICUBIC)]
        labels += [is_subject] * 2
    torch.manual_seed(0)
    return fit_probe(eye.inside_features(_stacked(pictures)), torch.tensor(labels), 2)


def _stacked(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@torch.inference_mode()
def through_vae(pipe: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Images encoded and decoded: the best the base model could do."""
    pixels = to_tensor(_stacked(images)).to(pipe.vae.device, pipe.vae.dtype)
    latents = pipe.vae.encode(pixels).latent_dist.mean
    decoded: list[Image.Image] = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
    return decoded
