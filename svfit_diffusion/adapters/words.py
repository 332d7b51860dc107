"""Words of subjects' own: where a prompt names one, each layer that reads the text reads a trained
vector beside it.

That is extended textual conditioning (P+, arXiv 2303.09522) next to shifts. Prompts that do not
name the subject are read as before. No weight can hold it, so it acts by hooks, as long as the
adapter does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.patches import runs_fused
from svfit_diffusion.adapters.readers import Readers, readers_of, text_in, with_text
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.adapters.texts import SeenTexts, places_of
from svfit_diffusion.calls import ask_always
from svfit_diffusion.errors import StateError
from svfit_diffusion.files.own_word import OwnWord

GAIN = 4.0
"""That of adapters: so large that words learn at σ's rates."""

_ATTRIBUTE = "_svfit_own_words"
"""Of a text encoder: those that stand in its texts."""

_Acting = list[tuple[float, Tensor, Tensor]]
"""Strength and vectors of each word that a text says, and where: `(places, batch, tokens)`."""


class OwnWords:
    """The words of the adapters on one denoiser.

    Args:
        model: the denoiser, or another model, which has none.
        gain: what a vector of ones adds, in sizes of the text.

    Attributes:
        model: as given.
        paused: whether none acts for a while.
        weights: of those that act, by adapter.
    """

    def __init__(self, model: nn.Module, gain: float = GAIN) -> None:
        self.model = model
        self._gain = gain
        self._words: dict[str, OwnWord] = {}
        self._texts: SeenTexts | None = None
        self._hooks: list[Any] = []
        self._readers: Readers | None = None
        self._hooked: list[nn.Module] = []
        self.weights: dict[str, float] = {}
        self._owners: RowOwners | None = None
        # What the texts of the call say that a thread is in; a backward pass that computes anew,
        # perhaps in a thread of its own, is given the latest or what was `again` to be so.
        self._acting: dict[int, _Acting] = {}
        self._latest: _Acting = []
        self.paused = False

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
            self.weights.pop(name, None)
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
            self._texts = SeenTexts(encoder)
            setattr(encoder, _ATTRIBUTE, [*getattr(encoder, _ATTRIBUTE, ()), self])

    @property
    def names(self) -> list[str]:
        """Of the adapters that have a word."""
        return list(self._words)

    def of(self, adapter_name: str) -> OwnWord | None:
        """An adapter's word as it is now, on the CPU."""
        word = self._words.get(adapter_name)
        if word is None:
            return None
        return replace(word, vectors=word.vectors.detach().to("cpu", copy=True))

    def parameters(self, adapter_name: str) -> list[nn.Parameter]:
        """The vectors of an adapter's word, if it has one."""
        words = [self._words[adapter_name]] if adapter_name in self._words else []
        return [word.vectors for word in words if isinstance(word.vectors, nn.Parameter)]

    def refuse(self, adapter_names: Collection[str], what: str) -> None:
        """Raise `StateError` if one of some adapters has a word; `what` completes "cannot …"."""
        for name in adapter_names:
            if name in self._words:
                raise StateError(
                    f"cannot {what}: adapter {name!r} has a word of its own, "
                    f"{self._words[name].identifier!r}, which no weights hold; set it with "
                    f"set_svfit_adapters"
                )

    def put(self, weights: Mapping[str, float], owners: RowOwners | None = None) -> None:
        """Let the words of exactly these adapters act, each as strongly as its adapter.

        Args:
            weights: of adapters, by name.
            owners: whose rows are whose, if each acts on rows of its own.
        """
        self._owners = owners
        self.weights = {n: w for n, w in weights.items() if w != 0 and n in self._words}
        self._unhook()
        if self.weights:
            self._hook()

    def _hook(self) -> None:
        self._readers = readers_of(self.model)
        self._hooked = self._modules(self._readers)
        self._hooks = [
            self.model.register_forward_pre_hook(self._find, with_kwargs=True),
            self.model.register_forward_hook(self._leave, always_call=True),
            *(
                module.register_forward_pre_hook(
                    functools.partial(self._add, index), with_kwargs=True
                )
                for index, module in enumerate(self._hooked)
            ),
        ]

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._hooked = [], []
        self._acting, self._latest = {}, []

    def _modules(self, readers: Readers) -> list[nn.Module]:
        return [self.model.get_submodule(path) for path in readers.paths]

    def _find(self, model: Any, args: Any, kwargs: Any) -> None:
        """See what the texts of a call say, before it begins."""
        readers = self._readers
        assert readers is not None
        self._check(readers)
        acting: _Acting = []
        text = None if self.paused else text_in(model, args, kwargs)
        if text is not None:
            assert self._texts is not None
            tokens = self._texts.tokens_of(text)
            if tokens is None:
                names = ", ".join(map(repr, self.weights))
                raise StateError(
                    f"the text did not come from the pipeline's {readers.encoder} as it is, or was "
                    f"made before the adapter was loaded, so that nobody can tell where it names "
                    f"the subject, and adapter {names} has a word of its own: give prompts, or "
                    f"embeddings of pipe.encode_prompt; no weighted prompts, and no clip_skip"
                )
            for name, weight in self.weights.items():
                word = self._beside(name, text)
                said = places_of(word.tokens, tokens).to(text.device) & self._rows_of(name, text)
                if bool(said.any()):
                    after = said.roll(1, 1) & ~said
                    places = torch.stack([said, after][: readers.places])
                    acting.append((weight, word.vectors, places))
        self._acting[threading.get_ident()] = self._latest = acting

    def _beside(self, adapter_name: str, text: Tensor) -> OwnWord:
        """A word where a text lies, kept there unless it is in training."""
        word = self._words[adapter_name]
        if not isinstance(word.vectors, nn.Parameter):
            word = replace(word, vectors=word.vectors.to(text.device))
            self._words[adapter_name] = word
        return word

    def _rows_of(self, adapter_name: str, text: Tensor) -> Tensor:
        """Which rows of texts an adapter acts on, `(batch, 1)` bool."""
        if self._owners is None:
            return text.new_ones(1, 1, dtype=torch.bool)
        parts = self._owners.parts(len(text))
        own = torch.tensor([owner == adapter_name for owner in parts], device=text.device)
        return own.repeat_interleave(len(text) // len(parts))[:, None]

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

    def _check(self, readers: Readers) -> None:
        """Raise `StateError` if a reader is no longer run; follow those that were wrapped."""
        now = self._modules(readers)
        if now != self._hooked:  # a LoRA has been loaded or taken off
            self._unhook()
            self._hook()
        parents = [self.model.get_submodule(path.rpartition(".")[0]) for path in readers.paths]
        if any(hasattr(parent, "processor") and runs_fused(parent) for parent in parents):
            self.refuse(list(self.weights), "draw with fused projections")

    def _leave(self, model: Any, args: Any, output: Any) -> None:
        self._acting.pop(threading.get_ident(), None)

    def _add(self, index: int, reader: Any, args: Any, kwargs: Any) -> Any:
        acting = self._acting.get(threading.get_ident(), self._latest)
        text = text_in(reader, args, kwargs) if acting else None
        if text is None:
            return None
        size = self._gain * text.detach().square().mean(-1, keepdim=True).sqrt()
        for weight, vectors, places in acting:
            own = vectors[index].to(text.device, text.dtype)
            for vector, place in zip(own, places, strict=True):
                text = text + weight * size * vector * place[..., None]
        return with_text(reader, args, kwargs, text)


def _check_call(pipe: Any) -> None:
    """Raise `StateError` if a pipeline is called that could not read the words that act.

    AnimateDiff's denoiser is a copy made with the weights of adapters alone, and a compiled one
    does not see hooks that come or go.
    """
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    here = [getattr(model, "_orig_mod", model) for model in models]
    for words in (own for model in here for own in getattr(model, _ATTRIBUTE, ())):
        acting = list(words.weights)
        if any(type(model).__name__ == "UNetMotionModel" for model in here):
            words.refuse(acting, "draw with AnimateDiff's copy of the UNet")
        if acting and words.model in here and _is_compiled(models[here.index(words.model)]):
            words.refuse(acting, "draw with a compiled denoiser")


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) for module in model.modules()
    )


ask_always(_check_call)
