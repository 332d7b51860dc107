"""Reading words: hooks on a denoiser that add words' vectors to what its layers read of a text."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from svfit_diffusion.adapters.patches import runs_fused
from svfit_diffusion.adapters.readers import (
    readers_of,
    text_in,
    tokens_before_text,
    with_changed_text,
)
from svfit_diffusion.adapters.texts import SeenTexts, places_of
from svfit_diffusion.errors import StateError
from svfit_diffusion.files.own_word import OwnWord

Strengths = Callable[[str, int], Tensor]
"""How strongly an adapter's word acts on each of so many rows of a batch, `(rows,)`."""


@dataclass(frozen=True)
class _Acting:
    """What the texts of a call say.

    Attributes:
        words: vectors of each word, and how strongly where: `(places, batch, tokens)`.
        before: how many tokens blocks have before the text.
    """

    words: list[tuple[Tensor, Tensor]]
    before: int


class WordReading:
    """What makes a denoiser read words, from now on until `close`.

    Args:
        model: the denoiser.
        words: those that act, by adapter.
        strengths: theirs.
        texts: those that the model may be given.
        gain: what a vector of ones adds, in sizes of the text.

    Attributes:
        texts: as given; another encoder's may take their place.
        paused: whether no word acts for a while.
    """

    def __init__(
        self,
        model: nn.Module,
        words: Mapping[str, OwnWord],
        strengths: Strengths,
        texts: SeenTexts,
        gain: float,
    ) -> None:
        self._model = model
        self._words = dict(words)
        self._strengths = strengths
        self.texts = texts
        self._gain = gain
        self.paused = False
        self._readers = readers_of(model)
        self._hooks: list[Any] = []
        self._hooked: list[nn.Module] = []
        # What the texts of the call say that a thread is in; a backward pass that computes anew,
        # perhaps in a thread of its own, is given the latest or what was `again` to be so.
        self._acting: dict[int, _Acting] = {}
        self._latest = _Acting([], 0)
        self._hook()

    @property
    def names(self) -> list[str]:
        """Of the adapters whose words act."""
        return list(self._words)

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
        words = [] if text is None else list(self._said_in(text))
        before = tokens_before_text(model, args, kwargs) if words else 0
        self._acting[threading.get_ident()] = self._latest = _Acting(words, before)

    def _said_in(self, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Vectors of each word in texts `(batch, tokens, width)`, and how strongly where.

        Raises:
            StateError: nobody can tell what they say.
        """
        tokens = self.texts.tokens_of(text)
        if tokens is None:
            raise StateError(
                f"the text did not come from the pipeline's {self._readers.encoder} as it is, or "
                f"was made before the adapter was loaded, so that nobody can tell where it names "
                f"the subject, and adapter {', '.join(map(repr, self.names))} has a word of its "
                f"own: give prompts, or embeddings of pipe.encode_prompt; no weighted prompts, and "
                f"no clip_skip"
            )
        for name in self._words:
            said = places_of(self._words[name].spellings, tokens).to(text.device)
            strengths = self._strengths(name, len(text)).to(text.device)[:, None]
            if bool((said * strengths).any()):
                after = functional.pad(said[:, :-1], (1, 0)) & ~said
                places = torch.stack([said, after][: self._readers.places])
                yield self._vectors(name, text), places * strengths

    def _vectors(self, adapter_name: str, text: Tensor) -> Tensor:
        """A word's where a text lies, kept there unless they are in training."""
        word = self._words[adapter_name]
        if not isinstance(word.vectors, nn.Parameter):
            word = self._words[adapter_name] = replace(word, vectors=word.vectors.to(text.device))
        return word.vectors

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
        if not acting.words:
            return None
        return with_changed_text(reader, args, kwargs, functools.partial(self._told, index, acting))

    def _told(self, index: int, acting: _Acting, sequence: Tensor) -> Tensor:
        """What the reader of this index is to read, where the text may be a part of it."""
        tokens = acting.words[0][1].shape[-1]
        before, text, behind = (
            sequence[:, : acting.before],
            sequence[:, acting.before : acting.before + tokens],
            sequence[:, acting.before + tokens :],
        )
        size = self._gain * text.detach().square().mean(-1, keepdim=True).sqrt()
        for vectors, places in acting.words:
            here = places[..., : text.shape[1]]  # a block may leave padding out
            for vector, strength in zip(vectors[index].to(text.device), here, strict=True):
                text = text + (strength[..., None] * size * vector).to(text.dtype)
        return torch.cat([before, text, behind], dim=1)


def refuse_words(words: Mapping[str, OwnWord], what: str) -> None:
    """Raise `StateError` if there is one of these words; `what` completes "cannot …"."""
    for name, word in words.items():
        raise StateError(
            f"cannot {what}: adapter {name!r} has a word of its own, {word.identifier!r}, which no "
            f"weights hold; set it with set_svfit_adapters"
        )
