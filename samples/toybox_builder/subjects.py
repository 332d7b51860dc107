"""Held-out subjects: things of known classes, in art that the base model never saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .art import EMOJIONE, FXEMOJI, NOTO_V1, ArtLibrary, ArtSet
from .compose import compose
from .scenes import SCENES, draw_scene

IDENTIFIER = "sks"
_SCENES = {scene.name: scene for scene in SCENES}


@dataclass(frozen=True)
class Subject:
    """One thing to personalise the model with, and the scenes of its five pictures."""

    name: str
    class_name: str
    art_set: ArtSet
    icon: str
    scenes: tuple[str, str, str, str, str]
    prompts: tuple[str, ...]


_ANIMAL_PROMPTS = (
    "on the beach",
    "in the snow",
    "in the jungle",
    "in the city",
    "with a mountain in the background",
    "on top of a purple rug",
    "floating on top of water",
)
_OBJECT_PROMPTS = (
    "on the beach",
    "in the snow",
    "in the jungle",
    "on a cobblestone street",
    "on top of pink fabric",
    "in front of a brick wall",
    "at night",
)

SUBJECTS = (
    Subject(
        "pug",
        "dog",
        EMOJIONE,
        "dog",
        ("grass", "wooden floor", "brick wall", "desert", "blue background"),
        _ANIMAL_PROMPTS,
    ),
    Subject(
        "poodle",
        "dog",
        FXEMOJI,
        "poodle",
        ("autumn forest", "pink fabric", "grass", "checkered", "yellow background"),
        _ANIMAL_PROMPTS,
    ),
    Subject(
        "tuxedo_cat",
        "cat",
        EMOJIONE,
        "cat",
        ("wooden floor", "grass", "pink fabric", "cobblestones", "yellow background"),
        _ANIMAL_PROMPTS,
    ),
    Subject(
        "blue_car",
        "car",
        NOTO_V1,
        "automobile",
        ("desert", "grass", "checkered", "autumn forest", "white background"),
        _OBJECT_PROMPTS,
    ),
    Subject(
        "satchel",
        "backpack",
        FXEMOJI,
        "schoolsatchel",
        ("wooden floor", "desert", "checkered", "mountains", "orange background"),
        _OBJECT_PROMPTS,
    ),
    Subject(
        "yellow_sneaker",
        "sneaker",
        FXEMOJI,
        "mensrunner",
        ("wooden floor", "city", "purple rug", "grass", "gray background"),
        _OBJECT_PROMPTS,
    ),
    Subject(
        "blue_clock",
        "clock",
        EMOJIONE,
        "alarm-clock",
        ("wooden floor", "checkered", "autumn forest", "purple rug", "white background"),
        _OBJECT_PROMPTS,
    ),
    Subject(
        "teal_ghost",
        "ghost",
        EMOJIONE,
        "ghost",
        ("autumn forest", "city", "wooden floor", "sunset", "red background"),
        _OBJECT_PROMPTS,
    ),
)


def build_subjects(archives: Path, folder: Path) -> None:
    """Write five pictures and a description for every subject; the result never varies."""
    library = ArtLibrary(archives)
    for number, subject in enumerate(SUBJECTS):
        rgba = library.sprite(subject.art_set, subject.icon)
        if rgba is None:
            raise LookupError(f"{subject.art_set.package} has no icon {subject.icon!r}")
        target = folder / subject.name
        target.mkdir(parents=True, exist_ok=True)
        for index, scene in enumerate(subject.scenes):
            rng = np.random.default_rng([number, index])
            background = draw_scene(_SCENES[scene], rng)
            picture, _ = compose(rgba, background, rng, scale=(0.68, 0.86), shift=4)
            Image.fromarray(picture).save(target / f"{index:02d}.png", optimize=True)
        description = {
            "name": subject.name,
            "class_name": subject.class_name,
            "instance_prompt": f"a photo of {IDENTIFIER} {subject.class_name}",
            "class_prompt": f"a photo of a {subject.class_name}",
            "prompts": [
                f"a photo of {IDENTIFIER} {subject.class_name} {scene}" for scene in subject.prompts
            ]
            + [f"a flat drawing of {IDENTIFIER} {subject.class_name} on a green background"],
            "credit": subject.art_set.credit,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (target / "subject.json").write_text(text + "\n")
