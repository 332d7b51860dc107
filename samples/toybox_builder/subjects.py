"""Held-out subjects: things of known classes, in art that the base model never saw."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    """One thing to personalise the model with.

    Attributes:
        name: of its folder.
        class_name: a thing that the base knows.
        art_set: where its drawing is from.
        icon: which drawing.
        scenes: of its five pictures.
        contexts: scenes of its prompts, none of them in the pictures.
        colours: asked for in its prompts, none of them its own.
    """

    name: str
    class_name: str
    art_set: ArtSet
    icon: str
    scenes: tuple[str, str, str, str, str]
    contexts: tuple[str, ...]
    colours: tuple[str, str]


_ANIMAL_CONTEXTS = ("beach", "snow", "jungle", "city", "mountains", "water")
_OBJECT_CONTEXTS = ("beach", "snow", "jungle", "cobblestones", "brick wall", "night sky")
_STYLES = (
    ("a flat drawing of", "on a green background"),
    ("a 3d render of", "on a purple rug"),
)

SUBJECTS = (
    Subject(
        "pug",
        "dog",
        EMOJIONE,
        "dog",
        ("grass", "wooden floor", "brick wall", "desert", "blue background"),
        _ANIMAL_CONTEXTS,
        ("green", "blue"),
    ),
    Subject(
        "poodle",
        "dog",
        FXEMOJI,
        "poodle",
        ("autumn forest", "pink fabric", "grass", "checkered", "yellow background"),
        _ANIMAL_CONTEXTS,
        ("red", "green"),
    ),
    Subject(
        "tuxedo_cat",
        "cat",
        EMOJIONE,
        "cat",
        ("wooden floor", "grass", "pink fabric", "cobblestones", "yellow background"),
        _ANIMAL_CONTEXTS,
        ("pink", "green"),
    ),
    Subject(
        "blue_car",
        "car",
        NOTO_V1,
        "automobile",
        ("desert", "grass", "checkered", "autumn forest", "white background"),
        _OBJECT_CONTEXTS,
        ("yellow", "purple"),
    ),
    Subject(
        "satchel",
        "backpack",
        FXEMOJI,
        "schoolsatchel",
        ("wooden floor", "desert", "checkered", "mountains", "orange background"),
        _OBJECT_CONTEXTS,
        ("red", "green"),
    ),
    Subject(
        "yellow_sneaker",
        "sneaker",
        FXEMOJI,
        "mensrunner",
        ("wooden floor", "city", "purple rug", "grass", "gray background"),
        _OBJECT_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "blue_clock",
        "clock",
        EMOJIONE,
        "alarm-clock",
        ("wooden floor", "checkered", "autumn forest", "purple rug", "white background"),
        _OBJECT_CONTEXTS,
        ("yellow", "purple"),
    ),
    Subject(
        "teal_ghost",
        "ghost",
        EMOJIONE,
        "ghost",
        ("autumn forest", "city", "wooden floor", "sunset", "red background"),
        _OBJECT_CONTEXTS,
        ("pink", "orange"),
    ),
    Subject(
        "violet_owl",
        "owl",
        EMOJIONE,
        "owl",
        ("grass", "autumn forest", "wooden floor", "pink fabric", "yellow background"),
        _ANIMAL_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "teal_robot",
        "robot",
        NOTO_V1,
        "robot",
        ("wooden floor", "city", "desert", "checkered", "white background"),
        _OBJECT_CONTEXTS,
        ("red", "purple"),
    ),
    Subject(
        "school_bus",
        "bus",
        EMOJIONE,
        "bus",
        ("city", "grass", "desert", "autumn forest", "blue background"),
        _OBJECT_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "beach_umbrella",
        "umbrella",
        EMOJIONE,
        "umbrella",
        ("grass", "wooden floor", "city", "sunset", "gray background"),
        _OBJECT_CONTEXTS,
        ("blue", "purple"),
    ),
)


def build_subjects(archives: Path, folder: Path) -> None:
    """Write five pictures, the sprite and a description for every subject; it never varies."""
    library = ArtLibrary(archives)
    for number, subject in enumerate(SUBJECTS):
        rgba = library.sprite(subject.art_set, subject.icon)
        if rgba is None:
            raise LookupError(f"{subject.art_set.package} has no icon {subject.icon!r}")
        target = folder / subject.name
        truth = target / "truth"
        truth.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba).save(truth / "sprite.png", optimize=True)
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
            "prompts": [*_prompts(subject)],
            "credit": subject.art_set.credit,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (target / "subject.json").write_text(text + "\n")


def _prompts(subject: Subject) -> Iterator[dict[str, str]]:
    """What to ask of the trained model: new scenes, other colours, other styles."""
    noun = f"{IDENTIFIER} {subject.class_name}"
    for name in subject.contexts:
        text = f"a photo of {noun} {_SCENES[name].phrases[-1]}"
        yield {"kind": "context", "text": text, "scene": name}
    for colour in subject.colours:
        text = f"a photo of {IDENTIFIER} {colour} {subject.class_name}"
        yield {"kind": "property", "text": text, "colour": colour}
    for opening, place in _STYLES:
        yield {"kind": "style", "text": f"{opening} {noun} {place}"}
