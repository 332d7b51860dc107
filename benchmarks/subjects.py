"""Subjects to learn: photos, what to ask of the trained model, and the truth where it is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samples.toybox_builder.compose import compose
from samples.toybox_builder.scenes import SCENES, draw_scene
from svfit_diffusion.errors import DataError
from svfit_diffusion.training.photos import load_photos

IDENTIFIER = "sks"
_SCENES = {scene.name: scene for scene in SCENES}
_DESCRIPTION = "subject.json"


@dataclass(frozen=True)
class Prompt:
    """What to ask of a trained model.

    Attributes:
        kind: "context" (a new scene), "property" (another colour) or "style".
        text: with the identifier.
        scene: of a context prompt on Toybox, by the builder's name; else empty.
    """

    kind: str
    text: str
    scene: str = ""

    @property
    def plain(self) -> str:
        """The text without the identifier: what a judge of texts should read."""
        return " ".join(word for word in self.text.split() if word != IDENTIFIER)


@dataclass(frozen=True)
class Subject:
    """A folder of photos with its description.

    Attributes:
        folder: holds the photos and `subject.json`.
        class_name: what the subject is.
        instance_prompt: names the subject.
        class_prompt: names its class.
        prompts: to judge the trained model by.
        sprites: RGBA `(h, w, 4)`, the subject cut out, in each of its poses; none where pictures of
            the truth cannot be composed.
    """

    folder: Path
    class_name: str
    instance_prompt: str
    class_prompt: str
    prompts: tuple[Prompt, ...]
    sprites: tuple[np.ndarray, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def photos(self) -> list[Image.Image]:
        """The photos, RGB."""
        return [photo.image for photo in load_photos(self.folder, self.instance_prompt)]

    def true_images(self, prompts: Sequence[Prompt], rounds: int, seed: int) -> list[Image.Image]:
        """The subject on each prompt's scene, prompts running fastest, its poses in turn."""
        rng = np.random.default_rng(seed)
        size = self.photos()[0].width
        return [
            Image.fromarray(compose(pose, draw_scene(_SCENES[p.scene], rng, size), rng)[0])
            for pose in itertools.islice(itertools.cycle(self.sprites), rounds)
            for p in prompts
        ]


def read_subject(folder: Path) -> Subject:
    """Read a subject's folder.

    Raises:
        DataError: there is no description, or it lacks prompts; the folder is named.
    """
    path = folder / _DESCRIPTION
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"subject {str(folder)!r} needs a {_DESCRIPTION} with class_name, instance_prompt, "
            f"class_prompt and prompts: {error}"
        ) from error
    missing = [k for k in ("class_name", "instance_prompt", "class_prompt") if not about.get(k)]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    prompts = _read_prompts(path, about.get("prompts"))
    sprites = sorted((folder / "truth").glob("*.png"))
    return Subject(
        folder,
        about["class_name"],
        about["instance_prompt"],
        about["class_prompt"],
        prompts,
        tuple(np.asarray(Image.open(sprite).convert("RGBA")) for sprite in sprites),
    )


def _read_prompts(path: Path, entries: Any) -> tuple[Prompt, ...]:
    """Check the list of prompts: without any, a subject cannot be judged."""
    try:
        prompts = tuple(
            Prompt(entry["kind"], entry["text"], entry.get("scene", "")) for entry in entries or ()
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f'{path}: each prompt is {{"kind": …, "text": …}}; {error!r}') from error
    if not any(prompt.kind == "context" for prompt in prompts):
        raise DataError(
            f'{path} has no prompts of kind "context", so nothing can be generated to judge the '
            f'subject by; add some, such as {{"kind": "context", "text": "a photo of '
            f'{IDENTIFIER} dog on the beach"}}'
        )
    unknown = sorted({prompt.scene for prompt in prompts} - {"", *_SCENES})
    if unknown:
        raise DataError(f"{path}: unknown scenes {unknown}; known are {sorted(_SCENES)}")
    return prompts
