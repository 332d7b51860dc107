"""What images of a subject are worth: fidelity to it and to the prompt, drift, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from benchmarks.extractors import Extractor, Seen
from benchmarks.subjects import Prompt, Subject
from svfit_diffusion.errors import DataError

_TRUE_ROUNDS = 4
_OTHER_CLASS_PROMPTS = (
    "a photo of a teapot on a wooden floor",
    "a photo of a mushroom in the jungle",
    "a photo of a penguin in the snow",
    "a photo of a house on the grass",
)
_CLASS_PLACES = ("", " on the beach", " in the snow", " on a wooden floor")


@dataclass(frozen=True)
class Scores:
    """Means over the images of one trained model; what cannot be had is None.

    Attributes:
        subject_fidelity: likeness to the true subject on the prompted scene, over context prompts
            (−1 to 1); likeness to the photos where the truth is unknown.
        photo_similarity: likeness to the photos, the literature's subject fidelity; backgrounds
            that leak from the photos raise it too.
        prompt_fidelity: likeness of the images to their prompts' texts, over all prompts.
        drift: how far prompts without the subject moved from what the base makes of them with the
            same noise: mean of 1 − likeness; 0 for the base.
        diversity: mean of 1 − likeness between images of the same prompt.
        scene_accuracy: share of context images in which the prompted scene is recognised.
        class_accuracy: share of context images in which the subject's class is recognised.
    """

    subject_fidelity: float
    photo_similarity: float
    prompt_fidelity: float
    drift: float
    diversity: float
    scene_accuracy: float | None
    class_accuracy: float | None


class Scorer:
    """Judges images of one subject.

    Args:
        subject: whose images.
        extractor: looks at them.

    Raises:
        DataError: the extractor does not know the subject's class or a scene of its prompts.

    Attributes:
        prompts: for images of the subject.
        drift_prompts: for images that should stay as they were.
    """

    def __init__(self, subject: Subject, extractor: Extractor) -> None:
        self._subject, self._extractor = subject, extractor
        self.prompts = subject.prompts
        self._context = [i for i, p in enumerate(self.prompts) if p.kind == "context"]
        self.drift_prompts = (
            *(subject.class_prompt + place for place in _CLASS_PLACES),
            *_OTHER_CLASS_PROMPTS,
        )
        _check_known("class", {subject.class_name}, extractor.thing_names)
        _check_known("scenes", {p.scene for p in self._context_prompts}, extractor.scene_names)
        self._photos = extractor.see(subject.photos()).features
        self._texts = extractor.read([prompt.plain for prompt in self.prompts])
        self._truth: Tensor | None = None
        if subject.sprites:
            truth = subject.true_images(self._context_prompts, _TRUE_ROUNDS, seed=0)
            self._truth = extractor.see(truth).features.unflatten(0, (_TRUE_ROUNDS, -1))

    @property
    def _context_prompts(self) -> list[Prompt]:
        return [self.prompts[index] for index in self._context]

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Look at images with the extractor."""
        return self._extractor.see(images)

    def score(self, images: Sequence[Image.Image], control: Seen, base_control: Seen) -> Scores:
        """Score a trained model.

        Args:
            images: of `prompts`, prompts running fastest.
            control: images of `drift_prompts` by the trained model.
            base_control: the same by the base, at the same noise.
        """
        seen = self.see(images)
        features = seen.features.unflatten(0, (-1, len(self.prompts)))
        context = features[:, self._context]
        photo_similarity = float((context.flatten(0, 1) @ self._photos.T).mean())
        fidelity = photo_similarity
        if self._truth is not None:
            fidelity = float(torch.einsum("rpf,tpf->rtp", context, self._truth).mean())
        embeddings = seen.embeddings.unflatten(0, (-1, len(self.prompts)))
        return Scores(
            subject_fidelity=fidelity,
            photo_similarity=photo_similarity,
            prompt_fidelity=float(torch.einsum("rpf,pf->rp", embeddings, self._texts).mean()),
            drift=float((1 - (control.features * base_control.features).sum(1)).mean()),
            diversity=_diversity(features),
            scene_accuracy=self._share_read(
                seen.scenes, self._extractor.scene_names, [p.scene for p in self._context_prompts]
            ),
            class_accuracy=self._share_read(
                seen.things,
                self._extractor.thing_names,
                [self._subject.class_name] * len(self._context),
            ),
        )

    def _share_read(
        self, chances: Tensor | None, names: Sequence[str], wanted: Sequence[str]
    ) -> float | None:
        """Share of the context images whose likeliest reading is the wanted name."""
        if chances is None:
            return None
        read = chances.argmax(1).unflatten(0, (-1, len(self.prompts)))[:, self._context]
        return float((read == torch.tensor([names.index(name) for name in wanted])).float().mean())


def _check_known(what: str, wanted: set[str], known: Sequence[str]) -> None:
    unknown = sorted(wanted - set(known))
    if known and unknown:
        raise DataError(
            f"the judges do not know the subject's {what} {unknown}; they know {sorted(known)}"
        )


def _diversity(features: Tensor) -> float:
    """Mean of 1 − cosine over pairs of rounds, `(rounds, prompts, width)`; 0 for one round."""
    rounds = len(features)
    if rounds < 2:
        return 0.0
    likeness = torch.einsum("apf,bpf->pab", features, features)
    others = ~torch.eye(rounds, dtype=torch.bool)
    return float((1 - likeness[:, others]).mean())
