"""A word of the subject's own, to be trained beside its shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.errors import ConfigError, DataError
from svfit_diffusion.families import Family
from svfit_diffusion.files.own_word import OwnWord
from svfit_diffusion.training.photos import Photo


def new_word(family: Family, identifier: str) -> tuple[OwnWord, nn.Module]:
    """A word that changes nothing yet, and the encoder of the text that it stands in.

    Args:
        family: of the base.
        identifier: what prompts call the subject.

    Raises:
        ConfigError: the base has no place for it, or its tokenizer does not know the identifier.
    """
    readers = readers_of(family.model)
    encoder = family.encoders.get(readers.encoder)
    if encoder is None:
        raise ConfigError(
            f"the base model has no {readers.encoder}, which reads train_identifier {identifier!r} "
            f"in models of its kind: load it whole, or train without train_identifier"
        )
    tokenizer = getattr(family.pipe, readers.encoder.replace("text_encoder", "tokenizer"))
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's, of pictures and text
    spellings = spellings_of(tokenizer, identifier)
    if not all(spellings) or any(tokenizer.unk_token_id in tokens for tokens in spellings):
        raise ConfigError(
            f"the base model's tokenizer does not know train_identifier {identifier!r}: take "
            f"another word, such as 'sks'"
        )
    vectors = nn.Parameter(torch.zeros(readers.shape))
    return OwnWord(identifier, spellings, vectors), encoder


def spellings_of(tokenizer: Any, identifier: str) -> tuple[tuple[int, ...], ...]:
    """A word's tokens in each way a tokenizer writes it: one of bytes has another behind a space
    than where a text begins.
    """
    written = (tokenizer(space + identifier, add_special_tokens=False) for space in ("", " "))
    return tuple(dict.fromkeys(tuple(ids.input_ids) for ids in written))


def check_said(identifier: str, photos: Sequence[Photo], class_prompt: str | None) -> None:
    """Make sure that photos' prompts say the identifier, and that the class prompt does not.

    Raises:
        DataError: no photo's prompt does.
        ConfigError: the class prompt does.
    """
    if identifier in (class_prompt or ""):
        raise ConfigError(
            f"class_prompt {class_prompt!r} says train_identifier {identifier!r}, which is the "
            f"subject's alone: name the class without it, such as 'a photo of a dog'"
        )
    if not any(identifier in photo.prompt for photo in photos):
        raise DataError(
            f"no photo's prompt says train_identifier {identifier!r}, the first is "
            f"{photos[0].prompt!r}: give an instance_prompt such as 'a photo of {identifier} dog'"
        )
