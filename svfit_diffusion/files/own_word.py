"""A word of a subject's own, as an adapter file holds it.

`<component>.word` `(readers, places, width)` float32 holds the vectors, and the header says under
`own_words` whose tokens they belong to: `{"unet": {"identifier": "sks", "tokens": [48136]}}`.
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


@dataclass(frozen=True)
class OwnWord:
    """What a denoiser reads beside the text where a prompt says a subject's identifier.

    Attributes:
        identifier: as prompts say it, such as `sks`.
        tokens: of it, as the base's tokenizer numbers them.
        vectors: `(readers, places, width)` float32: for each layer or block that reads the text,
            one for the identifier's tokens and perhaps one for the token after them.
    """

    identifier: str
    tokens: tuple[int, ...]
    vectors: Tensor


def words_header(words: Mapping[str, OwnWord]) -> dict[str, str]:
    """What a file's header says of words, by component; nothing where there are none."""
    said = {c: {"identifier": w.identifier, "tokens": list(w.tokens)} for c, w in words.items()}
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


def _identified(component: str, said: Any) -> tuple[str, tuple[int, ...]]:
    """Identifier and tokens of a word."""
    entries = said if isinstance(said, dict) else {}
    identifier, tokens = entries.get("identifier"), entries.get("tokens")
    if (
        not isinstance(identifier, str)
        or not isinstance(tokens, list)
        or not 1 <= len(tokens) <= _MOST_TOKENS
        or not all(type(token) is int and 0 <= token < 2**31 for token in tokens)
    ):
        raise CheckpointError(
            f"adapter metadata {_KEY!r} should give {component} an identifier and its 1 to "
            f"{_MOST_TOKENS} tokens, got {str(said)[:80]}"
        )
    return identifier, tuple(tokens)
