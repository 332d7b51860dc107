"""Held-out subjects of 128 pixels: in several poses where the art has them, turned and mirrored."""

from __future__ import annotations

from dataclasses import replace

from .art import EMOJIONE
from .flow_world import FLOW_SIZE
from .subjects import ANIMAL_CONTEXTS, SUBJECTS, Look, Subject

FLOW_LOOK = Look(size=FLOW_SIZE, sprite_size=256, scale=(0.62, 0.9), shift=9, tilt=8.0)

_KEPT = {subject.name: subject for subject in SUBJECTS}

FLOW_SUBJECTS = (
    replace(_KEPT["pug"], poses=("dog-face",)),
    replace(_KEPT["tuxedo_cat"], poses=("cat-face",)),
    Subject(
        "grumpy_tiger",
        "tiger",
        EMOJIONE,
        "tiger",
        ("grass", "wooden floor", "desert", "brick wall", "blue background"),
        ANIMAL_CONTEXTS,
        ("blue", "green"),
        ("tiger-face",),
    ),
    Subject(
        "shy_monkey",
        "monkey",
        EMOJIONE,
        "monkey-face",
        ("grass", "autumn forest", "wooden floor", "desert", "yellow background"),
        ANIMAL_CONTEXTS,
        ("blue", "purple"),
        ("see-no-evil-monkey", "hear-no-evil-monkey", "speak-no-evil-monkey", "monkey"),
    ),
    Subject(
        "tufted_chick",
        "chick",
        EMOJIONE,
        "front-facing-baby-chick",
        ("grass", "wooden floor", "pink fabric", "desert", "blue background"),
        ANIMAL_CONTEXTS,
        ("blue", "red"),
        ("baby-chick", "hatching-chick"),
    ),
    *(_KEPT[name] for name in ("blue_car", "violet_owl", "blue_clock", "teal_robot", "school_bus")),
    *(_KEPT[name] for name in ("poodle", "beach_umbrella")),
)
"""The last two are for tuning."""
