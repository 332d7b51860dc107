"""Words of subjects' own: where a prompt names one, each layer that reads the text reads a trained
vector beside it.

That is extended textual conditioning (P+, arXiv 2303.09522) next to shifts. Prompts that do not
name the subject are read as before. No weight can hold it, so it acts by hooks, as long as the
adapter does.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.adapters.reading import Strengths, WordReading, refuse_words
from svfit_diffusion.adapters.rows import RowLayout, RowOwners
from svfit_diffusion.adapters.texts import SeenTexts
from svfit_diffusion.calls import ask_always
from svfit_diffusion.files.own_word import OwnWord

GAIN = 4.0
"""That of adapters: so large that words learn at σ's rates."""

_ATTRIBUTE = "_svfit_own_words"
"""Of a text encoder: those that stand in its texts."""


class OwnWords:
    """The words of the adapters on one denoiser.

    Args:
        model: the denoiser, or another model, which has none.
        gain: what a vector of ones adds, in sizes of the text.

    Attributes:
        model: as given.
    """

    def __init__(self, model: nn.Module, gain: float = GAIN) -> None:
        self.model = model
        self._gain = gain
        self._words: dict[str, OwnWord] = {}
        self._texts: SeenTexts | None = None
        self._reading: WordReading | None = None

    @property
    def names(self) -> list[str]:
        """Of the adapters that have a word."""
        return list(self._words)

    @property
    def acting(self) -> list[str]:
        """Of those whose word acts."""
        return self._reading.names if self._reading else []

    def of(self, adapter_name: str) -> OwnWord | None:
        """An adapter's word as it is now, on the CPU."""
        word = self._words.get(adapter_name)
        if word is None:
            return None
        return replace(word, vectors=word.vectors.detach().to("cpu", copy=True))

    def parameters(self, adapter_name: str) -> list[nn.Parameter]:
        """The vectors of an adapter's word, if it has one and they can be trained."""
        words = [self._words[adapter_name]] if adapter_name in self._words else []
        return [word.vectors for word in words if isinstance(word.vectors, nn.Parameter)]

    def refuse(self, adapter_names: Collection[str], what: str) -> None:
        """Raise `StateError` if one of some adapters has a word; `what` completes "cannot …"."""
        refuse_words({n: self._words[n] for n in adapter_names if n in self._words}, what)

    # Coming and going

    def add(self, adapter_name: str, word: OwnWord, encoder: nn.Module) -> None:
        """Add an adapter's word; it acts once it is `put`.

        Args:
            adapter_name: of the adapter.
            word: of this model's `readers.Readers.shape`; a parameter's values are followed.
            encoder: makes the text that the model reads.
        """
        assert tuple(word.vectors.shape) == readers_of(self.model).shape
        self._words[adapter_name] = word
        if self._texts is None or self._texts.encoder is not encoder:
            self._watch(encoder)

    def strike(self, adapter_names: Iterable[str]) -> None:
        """Forget the words of adapters that no longer act."""
        for name in adapter_names:
            self._words.pop(name, None)
        if not self._words:
            self._watch(None)

    def _watch(self, encoder: nn.Module | None) -> None:
        """Follow the texts of an encoder, or no longer any."""
        if self._texts:
            here = getattr(self._texts.encoder, _ATTRIBUTE)
            here.remove(self)
            if not here:
                delattr(self._texts.encoder, _ATTRIBUTE)
            self._texts.close()
            self._texts = None
        if encoder is not None:
            self._texts = SeenTexts(encoder, readers_of(self.model).layers)
            setattr(encoder, _ATTRIBUTE, [*getattr(encoder, _ATTRIBUTE, ()), self])
            if self._reading:
                self._reading.texts = self._texts

    # Acting

    def put(self, weights: Mapping[str, float], owners: RowOwners | None = None) -> None:
        """Let the words of exactly these adapters act, each as strongly as its adapter.

        Args:
            weights: of adapters, by name.
            owners: whose rows are whose, if each acts on rows of its own.
        """
        strengths = functools.partial(_by_owner, dict(weights), owners)
        self._read([name for name, weight in weights.items() if weight != 0], strengths)

    def put_by_prompt(self, mixes: Sequence[Mapping[str, float]], layout: RowLayout) -> None:
        """Let words act on the rows of each prompt as strongly as its adapters do.

        Args:
            mixes: the adapters of each prompt.
            layout: which rows of a batch are whose.
        """
        names = [name for mix in mixes for name, weight in mix.items() if weight != 0]
        self._read(names, functools.partial(_by_prompt, mixes, layout))

    def _read(self, adapter_names: Collection[str], strengths: Strengths) -> None:
        """Have the words that there are of some adapters read, and no others."""
        words = {name: self._words[name] for name in adapter_names if name in self._words}
        if self._reading:
            self._reading.close()
            self._reading = None
        if words:
            assert self._texts is not None
            self._reading = WordReading(self.model, words, strengths, self._texts, self._gain)

    @property
    def paused(self) -> bool:
        """Whether those that act do not for a while."""
        return self._reading is not None and self._reading.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        if self._reading:
            self._reading.paused = paused

    def again(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """As `WordReading.again`."""
        return self._reading.again() if self._reading else (nullcontext(), nullcontext())


def _by_owner(
    weights: Mapping[str, float], owners: RowOwners | None, name: str, rows: int
) -> Tensor:
    """`Strengths` of words that act on all rows, or in training on those of their own."""
    parts = owners.parts(rows) if owners else [name]
    of_parts = [weights[name] * (owner == name) for owner in parts]
    return torch.tensor(of_parts).repeat_interleave(rows // len(parts))


def _by_prompt(
    mixes: Sequence[Mapping[str, float]], layout: RowLayout, name: str, rows: int
) -> Tensor:
    """`Strengths` of words that act on the rows of prompts."""
    return torch.tensor([mixes[prompt].get(name, 0.0) for prompt in layout.prompt_of_rows(rows)])


def _check_call(pipe: Any) -> None:
    """Raise `StateError` if a pipeline is called that could not read the words that act.

    AnimateDiff's denoiser is a copy made with the weights of adapters alone, and a compiled one
    does not see hooks that come or go.
    """
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    here = [getattr(model, "_orig_mod", model) for model in models]
    for words in (own for model in here for own in getattr(model, _ATTRIBUTE, ())):
        acting = words.acting
        if any(type(model).__name__ == "UNetMotionModel" for model in here):
            words.refuse(acting, "draw with AnimateDiff's copy of the UNet")
        if acting and words.model in here and _is_compiled(models[here.index(words.model)]):
            words.refuse(acting, "draw with a compiled denoiser")


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) for module in model.modules()
    )


ask_always(_check_call)
