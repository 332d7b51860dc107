"""A word of a subject's own, as an adapter file holds it.

`<component>.word` `(readers, places, width)` float32 holds the vectors, and the header says under
`own_words` whose tokens they belong to: `{"unet": {"identifier": "sks", "tokens": [48136]}}`. Where
a tokenizer writes a word in another way behind a space, `tokens` is a list of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter_tensors import WORD, split_suffix
from svfit_diffusion.files.metadata import parse_object

_KEY = "own_words"
_MOST_TOKENS = 64
_MOST_SPELLINGS = 4


@dataclass(frozen=True)
class OwnWord:
    """What a denoiser reads beside the text where a prompt says a subject's identifier.

    Attributes:
        identifier: as prompts say it, such as `sks`.
        spellings: its tokens, as the base's tokenizer numbers them, in each way they are written.
        vectors: `(readers, places, width)` float32: for each layer or block that reads the text,
            one for the identifier's tokens and perhaps one for the token after them.
    """

    identifier: str
    spellings: tuple[tuple[int, ...], ...]
    vectors: Tensor


def words_header(words: Mapping[str, OwnWord]) -> dict[str, str]:
    """What a file's header says of words, by component; nothing where there are none."""
    said = {c: {"identifier": w.identifier, "tokens": _packed(w)} for c, w in words.items()}
    return {_KEY: json.dumps(said, sort_keys=True)} if said else {}


def words_in(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, OwnWord]:
    """The words in named tensors and a header, by component.

    Raises:
        CheckpointError: one of them says nothing of a word, or no such thing, that is in the other.
    """
    vectors = {
        component: tensor.to(torch.float32, copy=True)
        for name, tensor in tensors.items()
        for component, suffix in [split_suffix(name)]
        if suffix == WORD
    }
    said = parse_object(_KEY, header.get(_KEY, "{}"))
    if said.keys() != vectors.keys():
        raise CheckpointError(
            f"it holds vectors of words for {', '.join(vectors) or 'no component'}, and says whose "
            f"they are for {', '.join(said) or 'none'}: load the file, not its tensors alone"
        )
    return {c: OwnWord(*_identified(c, said[c]), vectors[c]) for c in vectors}


def _packed(word: OwnWord) -> list[int] | list[list[int]]:
    """The tokens as a header says them."""
    spellings = [list(tokens) for tokens in word.spellings]
    return spellings[0] if len(spellings) == 1 else spellings


def _identified(component: str, said: Any) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Identifier and spellings of a word."""
    entries: dict[str, Any] = said if isinstance(said, dict) else {}
    identifier, tokens = entries.get("identifier"), entries.get("tokens")
    is_flat = not (isinstance(tokens, list) and tokens and isinstance(tokens[0], list))
    spellings: Any = [tokens] if is_flat else tokens
    if (
        not isinstance(identifier, str)
        or len(spellings) > _MOST_SPELLINGS
        or not all(_are_tokens(spelling) for spelling in spellings)
    ):
        raise CheckpointError(
            f"adapter metadata {_KEY!r} should give {component} an identifier and its 1 to "
            f"{_MOST_TOKENS} tokens, or up to {_MOST_SPELLINGS} lists of them, got {str(said)[:80]}"
        )
    return identifier, tuple(tuple(spelling) for spelling in spellings)


def _are_tokens(tokens: Any) -> bool:
    return (
        isinstance(tokens, list)
        and 1 <= len(tokens) <= _MOST_TOKENS
        and all(type(token) is int and 0 <= token < 2**31 for token in tokens)
    )
