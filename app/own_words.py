"""A word of the subject's own: where there is a place for one, when it is learned, which it is."""

from __future__ import annotations

from collections.abc import Sequence

from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import Family

from .class_prompts import rare_word_of
from .errors import SettingError, at_field
from .presets import is_small

WORDED_STRENGTH = 0.7
"""Of an adapter with a word of its own that is trained hard, on the photos alone: used gently, it
draws best.
"""


def has_place_for_word(family: Family | None) -> bool:
    """Whether a base's denoiser has layers that a word's vectors can be learned for."""
    if family is None:
        return False
    try:
        readers_of(family.model)
    except ConfigError:
        return False
    return True


def usually_has_word(family: Family | None) -> bool:
    """Whether a training learns a word unless told otherwise: on a small base, which draws a
    subject much better by one; not on a large one, whose adapters are wanted in other programs,
    too, which read no words.
    """
    return has_place_for_word(family) and is_small(family)


def word_to_learn(
    identifier: str, own_word: bool, prompt: str, class_prompt: str, family: Family | None
) -> str:
    """The word of its own that a subject gets, `""` for none.

    Args:
        identifier: which; `""`: the instance prompt's rare word.
        own_word: whether one is wanted.
        prompt: the instance prompt, which has to say the word.
        class_prompt: must not say it.
        family: of the base, which has to have a place for words.

    Raises:
        SettingError: the word wanted is not there, or cannot be learned.
    """
    word = identifier.strip()
    if not own_word:
        if word:
            raise SettingError(
                f"“{word}” is given, and “A word of its own” is off: switch it on, or empty this "
                "field.",
                "identifier",
            )
        return ""
    word = word or rare_word_of(prompt, class_prompt)
    if not word and not class_prompt:
        raise SettingError(
            "The class prompt is missing: say what kind of thing your subject is, such as “a photo "
            "of a dog”, so that its rare word is known.",
            "class-prompt",
        )
    if not word:
        raise SettingError(
            "Which word of the instance prompt is your subject's own is not clear: give it here, "
            "or switch “A word of its own” off.",
            "identifier",
        )
    if family:
        with at_field("identifier"):
            readers_of(family.model)
    if word not in prompt:
        raise SettingError(
            f"The instance prompt does not say “{word}”: give the rare word that stands in it.",
            "identifier",
        )
    if word in class_prompt:
        raise SettingError(
            f"The class prompt says “{word}” too: give the rare word of your subject alone.",
            "identifier",
        )
    return word


def check_captions(word: str | None, captions: Sequence[str]) -> None:
    """Make sure that a photo is learned by a prompt that says the word.

    Args:
        word: the subject's own, if it is to have one.
        captions: of the photos, in place of the instance prompt where they are not `""`.

    Raises:
        SettingError: all photos have captions, and none says it.
    """
    if word and all(captions) and not any(word in caption for caption in captions):
        raise SettingError(
            f"No photo's caption says “{word}”, the word to be learned: write it into them, such "
            f"as “{word} {captions[0]}”, or switch “A word of its own” off.",
            "drop",
        )
