"""Captions for composed pictures, with nonsense words so that unseen identifiers are neutral."""

from __future__ import annotations

import numpy as np

from .art import FLUENT_3D, NOTO
from .scenes import Scene

NONSENSE_SHARE = 0.25
SCENELESS_SHARE = 0.15
BARE_NOUN_SHARE = 0.2
RESERVED_IDENTIFIERS = frozenset({"sks", "zwx", "ohwx", "xjy"})
"""Identifiers that no training caption contains, left free for fine-tuning."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def nonsense_word(rng: np.random.Generator) -> str:
    """A random word of two to four letters that is not a reserved identifier."""
    while True:
        letters = rng.integers(0, len(_LETTERS), int(rng.integers(2, 5)))
        word = "".join(_LETTERS[index] for index in letters)
        if word not in RESERVED_IDENTIFIERS:
            return word


def with_article(noun_phrase: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def _medium(set_name: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if set_name == FLUENT_3D.name:
        return "a 3d render of" if draw < 0.1 else "a photo of"
    if set_name == NOTO.name:
        return "a cartoon of" if draw < 0.25 else "a photo of"
    return "a flat drawing of" if draw < 0.35 else "a photo of"


def _telling_medium(set_name: str, is_named: bool, rng: np.random.Generator) -> str:
    """A photo shows the rounded design, but for a thing with a name of its own: that may be any."""
    own = {FLUENT_3D.name: "a 3d render of", NOTO.name: "a cartoon of"}
    photo_share = 0.85 if set_name == FLUENT_3D.name or is_named else 0.1
    if rng.random() < photo_share:
        return "a photo of"
    return own.get(set_name, "a flat drawing of")


def caption(
    concept: str,
    colour: str | None,
    scene: Scene,
    set_name: str,
    rng: np.random.Generator,
    companion: str | None = None,
    telling: bool = False,
    named_share: float = NONSENSE_SHARE,
) -> str:
    """Describe a composed picture in one of the many ways the model has to understand.

    Args:
        concept: the thing.
        colour: it was given, if any.
        scene: behind it.
        set_name: of the art that drew it.
        rng: decides the wording.
        companion: what stands beside it, if anything, as a noun phrase without an article.
        telling: name the design by the opening, rather than call most of them photos.
        named_share: how often a nonsense word stands before the thing.
    """
    noun = f"{colour} {concept}" if colour else concept
    is_named = rng.random() < named_share
    if is_named:
        noun = f"{nonsense_word(rng)} {noun}"
    if rng.random() >= BARE_NOUN_SHARE:
        noun = with_article(noun)
    medium = _telling_medium(set_name, is_named, rng) if telling else _medium(set_name, rng)
    words = [medium, noun]
    if companion is not None:
        words.append(f"with {with_article(companion)}")
    if rng.random() >= SCENELESS_SHARE:
        words.append(scene.phrases[int(rng.integers(len(scene.phrases)))])
    return " ".join(words)
