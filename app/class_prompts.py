"""The rare word of an instance prompt, and the class prompt: the same without it."""

from __future__ import annotations

_ARTICLES = frozenset({"a", "an", "the", "my", "one"})
_PREPOSITIONS = frozenset({"on", "in", "at", "with", "under", "near", "by", "beside", "before"})


def class_prompt_of(instance_prompt: str) -> str:
    """`a photo of a dog` of `a photo of sks dog`; `""` where no class follows the rare word.

    The rare word is the first after the last “of” and an article, or the first of a prompt without
    an “of”.
    """
    frame, rest = _parts(instance_prompt)
    named = rest[1:]
    if not named or named[0].lower() in _PREPOSITIONS:
        return ""
    return " ".join([*frame, *_article(named), *named])


def rare_word_of(instance_prompt: str, class_prompt: str) -> str:
    """`sks` of `a photo of sks dog`: the only word that the class prompt does not say, or, where it
    is put otherwise, the one that `class_prompt_of` leaves out. `""` where there is none.
    """
    frame, rest = _parts(instance_prompt)
    said = {*class_prompt.lower().split(), *_ARTICLES}
    alone = [word for word in (*frame, *rest) if word.lower() not in said]
    if class_prompt and len(alone) == 1:
        return alone[0]
    return rest[0] if class_prompt_of(instance_prompt) else ""


def _parts(instance_prompt: str) -> tuple[list[str], list[str]]:
    """The words up to “of”, and those from the rare word on."""
    words = instance_prompt.strip().rstrip(".").split()
    after = max((i + 1 for i, word in enumerate(words) if word.lower() == "of"), default=0)
    frame, rest = words[:after], words[after:]
    if rest and rest[0].lower() in _ARTICLES:
        rest = rest[1:]
    return frame, rest


def _article(named: list[str]) -> list[str]:
    """The article of a class: none for several of its kind."""
    ends = next((i for i, word in enumerate(named) if word.lower() in _PREPOSITIONS), len(named))
    kind = named[ends - 1].lower().rstrip(",")
    if kind.endswith("s") and not kind.endswith(("ss", "us", "is")):
        return []
    return ["an" if named[0][0].lower() in "aeiou" else "a"]
