"""Reading words: hooks on a denoiser that add words' vectors to what its layers read of a text."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.patches import runs_fused
from svfit_diffusion.adapters.readers import readers_of, text_in, text_read, with_text
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.adapters.texts import SeenTexts, places_of
from svfit_diffusion.errors import StateError
from svfit_diffusion.files.own_word import OwnWord

_Acting = list[tuple[float, Tensor, Tensor]]
"""Strength and vectors of each word that a text says, and where: `(places, batch, tokens)`."""


class WordReading:
    """What makes a denoiser read words, from now on until `close`.

    Args:
        model: the denoiser.
        words: those that act, by adapter.
        weights: how strongly, by adapter.
        texts: those that the model may be given.
        gain: what a vector of ones adds, in sizes of the text.
        owners: whose rows are whose, if each word acts on rows of its own.

    Attributes:
        weights: as given.
        texts: as given; another encoder's may take their place.
        paused: whether no word acts for a while.
    """

    def __init__(
        self,
        model: nn.Module,
        words: Mapping[str, OwnWord],
        weights: Mapping[str, float],
        texts: SeenTexts,
        gain: float,
        owners: RowOwners | None,
    ) -> None:
        self._model = model
        self._words = dict(words)
        self.weights = dict(weights)
        self.texts = texts
        self._gain = gain
        self._owners = owners
        self.paused = False
        self._readers = readers_of(model)
        self._hooks: list[Any] = []
        self._hooked: list[nn.Module] = []
        # What the texts of the call say that a thread is in; a backward pass that computes anew,
        # perhaps in a thread of its own, is given the latest or what was `again` to be so.
        self._acting: dict[int, _Acting] = {}
        self._latest: _Acting = []
        self._hook()

    def close(self) -> None:
        """Have the model read texts alone."""
        for hook in self._hooks:
            hook.remove()

    def again(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of `torch.utils.checkpoint`: what is computed again reads the same words."""
        return nullcontext(), self._given(self._latest)

    @contextmanager
    def _given(self, acting: _Acting) -> Iterator[None]:
        before, self._latest = self._latest, acting
        try:
            yield
        finally:
            self._latest = before

    def _hook(self) -> None:
        self._hooked = self._modules()
        self._hooks = [
            self._model.register_forward_pre_hook(self._find, with_kwargs=True),
            self._model.register_forward_hook(self._leave, always_call=True),
            *(
                module.register_forward_pre_hook(
                    functools.partial(self._add, index), with_kwargs=True
                )
                for index, module in enumerate(self._hooked)
            ),
        ]

    def _modules(self) -> list[nn.Module]:
        return [self._model.get_submodule(path) for path in self._readers.paths]

    def _find(self, model: Any, args: Any, kwargs: Any) -> None:
        """See what the texts of a call say, before it begins."""
        self._check_readers()
        text = None if self.paused else text_in(model, args, kwargs)
        acting = [] if text is None else list(self._said_in(text))
        self._acting[threading.get_ident()] = self._latest = acting

    def _said_in(self, text: Tensor) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Strength, vectors and places of each word in texts `(batch, tokens, width)`.

        Raises:
            StateError: nobody can tell what they say.
        """
        tokens = self.texts.tokens_of(text)
        if tokens is None:
            raise StateError(
                f"the text did not come from the pipeline's {self._readers.encoder} as it is, or "
                f"was made before the adapter was loaded, so that nobody can tell where it names "
                f"the subject, and adapter {', '.join(map(repr, self.weights))} has a word of its "
                f"own: give prompts, or embeddings of pipe.encode_prompt; no weighted prompts, and "
                f"no clip_skip"
            )
        for name, weight in self.weights.items():
            word = self._beside(name, text)
            said = places_of(word.spellings, tokens).to(text.device) & self._rows_of(name, text)
            if bool(said.any()):
                after = said.roll(1, 1) & ~said
                yield weight, word.vectors, torch.stack([said, after][: self._readers.places])

    def _beside(self, adapter_name: str, text: Tensor) -> OwnWord:
        """A word where a text lies, kept there unless it is in training."""
        word = self._words[adapter_name]
        if not isinstance(word.vectors, nn.Parameter):
            word = self._words[adapter_name] = replace(word, vectors=word.vectors.to(text.device))
        return word

    def _rows_of(self, adapter_name: str, text: Tensor) -> Tensor:
        """Which rows of texts an adapter acts on, `(batch, 1)` bool."""
        if self._owners is None:
            return text.new_ones(1, 1, dtype=torch.bool)
        parts = self._owners.parts(len(text))
        own = torch.tensor([owner == adapter_name for owner in parts], device=text.device)
        return own.repeat_interleave(len(text) // len(parts))[:, None]

    def _check_readers(self) -> None:
        """Raise `StateError` if a reader is no longer run; follow those that were wrapped."""
        if self._modules() != self._hooked:  # a LoRA has been loaded or taken off
            self.close()
            self._hook()
        parents = [self._model.get_submodule(p.rpartition(".")[0]) for p in self._readers.paths]
        if any(hasattr(parent, "processor") and runs_fused(parent) for parent in parents):
            refuse_words(self._words, "draw with fused projections")

    def _leave(self, model: Any, args: Any, output: Any) -> None:
        self._acting.pop(threading.get_ident(), None)

    def _add(self, index: int, reader: Any, args: Any, kwargs: Any) -> Any:
        acting = self._acting.get(threading.get_ident(), self._latest)
        if not acting:
            return None
        _, _, places = acting[0]
        text = text_read(reader, args, kwargs, tokens=places.shape[-1])
        size = self._gain * text.detach().square().mean(-1, keepdim=True).sqrt()
        for weight, vectors, places in acting:
            own = vectors[index].to(text.device, text.dtype)
            for vector, place in zip(own, places, strict=True):
                text = text + weight * size * vector * place[..., None]
        return with_text(reader, args, kwargs, text)


def refuse_words(words: Mapping[str, OwnWord], what: str) -> None:
    """Raise `StateError` if there is one of these words; `what` completes "cannot …"."""
    for name, word in words.items():
        raise StateError(
            f"cannot {what}: adapter {name!r} has a word of its own, {word.identifier!r}, which no "
            f"weights hold; set it with set_svfit_adapters"
        )
