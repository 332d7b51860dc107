"""Where tokens are in the texts that a text encoder has made.

A denoiser is handed texts `(batch, tokens, width)` in whatever order and number, and not what they
say. Here each is known again by its last vector, which depends on the whole prompt: in CLIP and T5
that of the last token, and where a pipeline leaves the padding out, or puts zeros in its place, of
the last one that is not padding. What a pipeline leaves out is at the beginning (a template), so
that texts and tokens end alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_REMEMBERED = 8192
"""Marks, of which a text has four at most: more than a training has captions."""
_MARK = 32
"""Of the width of a text's last vector, by which it is known again."""


class SeenTexts:
    """The texts that an encoder has made since it was watched.

    Args:
        encoder: a transformers model that is called with `input_ids`.
        layers: of it, whose states may be the text, beside the last.

    Attributes:
        encoder: as given.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[int] = ()) -> None:
        self._layers = layers
        # Marks `(texts, _MARK)`, the latest first, and the tokens of each: one object, since other
        # threads read them.
        self._seen: tuple[Tensor, list[Tensor]] | None = None
        self.encoder = encoder
        self._hook = encoder.register_forward_hook(self._note, with_kwargs=True)

    def close(self) -> None:
        """Watch no longer."""
        self._hook.remove()

    @torch.no_grad()
    @torch.inference_mode(False)
    def _note(self, encoder: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        if given is None:  # embeddings, of which nobody can tell what they say
            return
        tokens = list(given.to("cpu", copy=True))  # where they take nothing of a card
        mask = kwargs.get("attention_mask")
        ends = [given.shape[1]] * len(given) if mask is None else _ends(mask.bool())
        within = [row[:end] for row, end in zip(tokens, ends, strict=True)]
        for text in _states(output, self._layers):
            self._remember(text[:, -1], tokens)
            if mask is not None:
                self._remember(_at_ends(text, ends), within)

    def _remember(self, vectors: Tensor, tokens: list[Tensor]) -> None:
        marks = vectors[:, :_MARK].clone()
        if self._seen and self._seen[0].dtype == marks.dtype:
            marks = torch.cat([marks, self._seen[0].to(marks.device)])[:_REMEMBERED]
            tokens = [*tokens, *self._seen[1]][:_REMEMBERED]
        self._seen = marks, tokens

    @torch.no_grad()
    def tokens_of(self, text: Tensor) -> Tensor | None:
        """The tokens `(batch, tokens)` of texts `(batch, tokens, width)`, -1 where there are none;
        None if one of them was not seen, but for those that are all zeros.
        """
        ends = _ends((text.detach() != 0).any(-1))
        tokens = torch.full(text.shape[:2], -1)
        if not any(ends):
            return tokens
        if self._seen is None:
            return None
        marks, seen = self._seen
        own = _at_ends(text.detach(), ends)[:, : marks.shape[1]]
        same = (own[:, None] == marks.to(own)).all(-1)
        found = same.int().argmax(-1).where(same.any(-1), -1)
        for row, (end, index) in enumerate(zip(ends, found.tolist(), strict=True)):
            if end and index < 0:
                return None
            if end:
                said = seen[index][-end:]
                tokens[row, end - len(said) : end] = said
        return tokens


def _states(output: Any, layers: Sequence[int]) -> list[Tensor]:
    """What an encoder made that may be a text, `(batch, tokens, width)`: the last layer's states,
    and some others'.
    """
    hidden = getattr(output, "hidden_states", None) or ()
    # A language model's first output is of its vocabulary.
    last = hidden[-1:] if hasattr(output, "logits") else (output[0],)
    some = [hidden[i] for i in layers if -len(hidden) <= i < len(hidden)]
    return [state for state in (*last, *some) if state.dim() == 3]  # others are of whole prompts


def _ends(is_some: Tensor) -> list[int]:
    """How many there are up to the last that is true, in each row `(batch, tokens)` bool."""
    numbers = torch.arange(1, is_some.shape[1] + 1, device=is_some.device)
    ends: list[int] = (is_some * numbers).amax(1).tolist()
    return ends


def _at_ends(text: Tensor, ends: Sequence[int]) -> Tensor:
    """The vectors `(batch, width)` at these ends of texts; an empty one's is any."""
    at = torch.tensor(ends, device=text.device).clamp(min=1) - 1
    return text[torch.arange(len(text), device=text.device), at]


def places_of(spellings: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
    """Where texts say a word, `(batch, tokens)` bool.

    Args:
        spellings: the tokens that are the word, one after the other, in each way it is written.
        tokens: of the texts, `(batch, tokens)`.
    """
    said = torch.zeros_like(tokens, dtype=torch.bool)
    for wanted in spellings:
        length = len(wanted)
        if tokens.shape[1] < length:
            continue
        row = torch.tensor(wanted, device=tokens.device)
        begins = (tokens.unfold(1, length, 1) == row).all(-1)
        for offset in range(length):
            said[:, offset : offset + begins.shape[1]] |= begins
    return said
