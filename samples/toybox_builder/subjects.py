"""Held-out subjects: things of known classes, in art that the base model never saw."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .art import EMOJIONE, FXEMOJI, NOTO_V1, SPRITE_SIZE, ArtLibrary, ArtSet
from .compose import compose, tilt
from .concepts import ONE_SIDED
from .scenes import SCENES, SIZE, draw_scene

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
        poses: further drawings of the very same thing.
    """

    name: str
    class_name: str
    art_set: ArtSet
    icon: str
    scenes: tuple[str, str, str, str, str]
    contexts: tuple[str, ...]
    colours: tuple[str, str]
    poses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """How the pictures of subjects are taken.

    Attributes:
        size: edge of the pictures, in pixels.
        sprite_size: edge of the sprites before they are scaled, in pixels.
        scale: range of a sprite's edge, as a share of the picture's.
        shift: pixels that a sprite may lie off the middle, each way.
        tilt: degrees that a thing may be turned by, each way; if any, it may be mirrored too.
    """

    size: int = SIZE
    sprite_size: int = SPRITE_SIZE
    scale: tuple[float, float] = (0.68, 0.86)
    shift: int = 4
    tilt: float = 0.0


ANIMAL_CONTEXTS = ("beach", "snow", "jungle", "city", "mountains", "water")
OBJECT_CONTEXTS = ("beach", "snow", "jungle", "cobblestones", "brick wall", "night sky")
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
        ANIMAL_CONTEXTS,
        ("green", "blue"),
    ),
    Subject(
        "poodle",
        "dog",
        FXEMOJI,
        "poodle",
        ("autumn forest", "pink fabric", "grass", "checkered", "yellow background"),
        ANIMAL_CONTEXTS,
        ("red", "green"),
    ),
    Subject(
        "tuxedo_cat",
        "cat",
        EMOJIONE,
        "cat",
        ("wooden floor", "grass", "pink fabric", "cobblestones", "yellow background"),
        ANIMAL_CONTEXTS,
        ("pink", "green"),
    ),
    Subject(
        "blue_car",
        "car",
        NOTO_V1,
        "automobile",
        ("desert", "grass", "checkered", "autumn forest", "white background"),
        OBJECT_CONTEXTS,
        ("yellow", "purple"),
    ),
    Subject(
        "satchel",
        "backpack",
        FXEMOJI,
        "schoolsatchel",
        ("wooden floor", "desert", "checkered", "mountains", "orange background"),
        OBJECT_CONTEXTS,
        ("red", "green"),
    ),
    Subject(
        "yellow_sneaker",
        "sneaker",
        FXEMOJI,
        "mensrunner",
        ("wooden floor", "city", "purple rug", "grass", "gray background"),
        OBJECT_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "blue_clock",
        "clock",
        EMOJIONE,
        "alarm-clock",
        ("wooden floor", "checkered", "autumn forest", "purple rug", "white background"),
        OBJECT_CONTEXTS,
        ("yellow", "purple"),
    ),
    Subject(
        "teal_ghost",
        "ghost",
        EMOJIONE,
        "ghost",
        ("autumn forest", "city", "wooden floor", "sunset", "red background"),
        OBJECT_CONTEXTS,
        ("pink", "orange"),
    ),
    Subject(
        "violet_owl",
        "owl",
        EMOJIONE,
        "owl",
        ("grass", "autumn forest", "wooden floor", "pink fabric", "yellow background"),
        ANIMAL_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "teal_robot",
        "robot",
        NOTO_V1,
        "robot",
        ("wooden floor", "city", "desert", "checkered", "white background"),
        OBJECT_CONTEXTS,
        ("red", "purple"),
    ),
    Subject(
        "school_bus",
        "bus",
        EMOJIONE,
        "bus",
        ("city", "grass", "desert", "autumn forest", "blue background"),
        OBJECT_CONTEXTS,
        ("red", "blue"),
    ),
    Subject(
        "beach_umbrella",
        "umbrella",
        EMOJIONE,
        "umbrella",
        ("grass", "wooden floor", "city", "sunset", "gray background"),
        OBJECT_CONTEXTS,
        ("blue", "purple"),
    ),
)


def build_subjects(
    archives: Path, folder: Path, subjects: Sequence[Subject] = SUBJECTS, look: Look | None = None
) -> None:
    """Write five pictures, the sprites and a description for every subject; they never vary."""
    look = look or Look()
    library = ArtLibrary(archives, look.sprite_size)
    for number, subject in enumerate(subjects):
        sprites = [_drawn(library, subject, icon) for icon in (subject.icon, *subject.poses)]
        target = folder / subject.name
        truth = target / "truth"
        truth.mkdir(parents=True, exist_ok=True)
        for index, rgba in enumerate(sprites):
            name = f"sprite_{index}.png" if index else "sprite.png"
            Image.fromarray(rgba).save(truth / name, optimize=True)
        for index, scene in enumerate(subject.scenes):
            posed = _posed(sprites[index % len(sprites)], subject, look.tilt, (number, index))
            rng = np.random.default_rng([number, index])
            background = draw_scene(_SCENES[scene], rng, look.size)
            picture, _ = compose(posed, background, rng, look.scale, look.shift)
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


def _drawn(library: ArtLibrary, subject: Subject, icon: str) -> np.ndarray:
    rgba = library.sprite(subject.art_set, icon)
    if rgba is None:
        raise LookupError(f"{subject.art_set.package} has no icon {icon!r}")
    return rgba


def _posed(rgba: np.ndarray, subject: Subject, degrees: float, seed: tuple[int, int]) -> np.ndarray:
    """The sprite, turned and mirrored at times if it may be turned at all."""
    if not degrees:
        return rgba
    rng = np.random.default_rng([*seed, 1])
    if subject.class_name not in ONE_SIDED and rng.random() < 0.4:
        rgba = rgba[:, ::-1]
    return tilt(rgba, float(rng.uniform(-degrees, degrees)))


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
