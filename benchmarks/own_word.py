"""A word of the subject's own on top of any method, as `train_identifier` learns it beside σ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from benchmarks.adapting import Adapt, Adapted, Models
from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.adapters.words import GAIN, OwnWords
from svfit_diffusion.files.own_word import OwnWord
from svfit_diffusion.training.own_word import spellings_of

_IDENTIFIER = "sks"
_NAME = "subject"


def with_own_word(adapt: Adapt, gain: float = GAIN) -> Adapt:
    """Train a vector for each layer that reads the text, beside what a method trains.

    Args:
        adapt: the method.
        gain: times the text's own size, what a vector of ones adds to it: one learning rate serves
            both, so it is larger where the method's is lower.
    """

    def adapt_both(models: Models, steps: int) -> Adapted:
        name = next(name for name in ("transformer", "unet") if name in models)
        denoiser = models[name]
        readers = readers_of(denoiser)
        adapted = adapt(models, steps)
        device = next(denoiser.parameters()).device
        vectors = nn.Parameter(torch.zeros(readers.shape, device=device))
        words = OwnWords(denoiser, gain)

        def save(folder: Path) -> None:
            adapted.save(folder)
            tensors = {"own_word": vectors.detach().contiguous()}
            safetensors.torch.save_file(tensors, folder / "own_word.safetensors")

        @contextmanager
        def attached(pipe: Any) -> Iterator[None]:
            tokenizer = getattr(pipe, readers.encoder.replace("text_encoder", "tokenizer"))
            spellings = spellings_of(tokenizer, _IDENTIFIER)
            encoder = getattr(pipe, readers.encoder)
            words.add(_NAME, OwnWord(_IDENTIFIER, spellings, vectors), encoder)
            words.put({_NAME: 1.0})
            try:
                yield
            finally:
                words.put({})
                words.strike([_NAME])

        return dataclasses.replace(
            adapted,
            parameters=[*adapted.parameters, vectors],
            save=save,
            attached=attached,
            strengthen=lambda strength: words.put({_NAME: strength}),
        )

    return adapt_both
