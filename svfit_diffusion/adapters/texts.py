"""Where tokens are in the texts that a text encoder has made.

A denoiser is handed texts `(batch, tokens, width)` in whatever order and number, and not what they
say. Here each is known again by its last vector, which in CLIP and T5 depends on the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_REMEMBERED = 4096
"""Texts: more than a training has captions."""
_MARK = 32
"""Of the width of a text's last vector, by which it is known again."""


class SeenTexts:
    """The texts that an encoder has made since it was watched.

    Args:
        encoder: a transformers model that is called with `input_ids`.

    Attributes:
        encoder: as given.
    """

    def __init__(self, encoder: nn.Module) -> None:
        # By the number of tokens: marks `(texts, _MARK)`, and the tokens `(texts, tokens)`.
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
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
        tokens: Tensor = given.clone()
        # Stable Diffusion XL reads what comes before the last layer.
        states = [output[0], *(getattr(output, "hidden_states", None) or ())[-2:-1]]
        texts = [state for state in states if state.dim() == 3]  # others are of whole prompts
        if not texts:
            return
        marks = torch.cat([text[:, -1, :_MARK] for text in texts])
        tokens = tokens.repeat(len(texts), 1)
        seen = self._seen.get(tokens.shape[1])
        if seen and seen[0].dtype == marks.dtype:
            marks = torch.cat([marks, seen[0].to(marks.device)])[:_REMEMBERED]
            tokens = torch.cat([tokens, seen[1].to(tokens.device)])[:_REMEMBERED]
        self._seen[tokens.shape[1]] = marks, tokens

    @torch.no_grad()
    def tokens_of(self, text: Tensor) -> Tensor | None:
        """The tokens `(batch, tokens)` of texts `(batch, tokens, width)`, -1 in those that are all
        zeros; None if one of them was not seen.
        """
        marks = text.detach()[:, -1, :_MARK]
        is_zero = (marks == 0).all(-1, keepdim=True)
        if text.shape[1] not in self._seen:
            return torch.full(text.shape[:2], -1) if bool(is_zero.all()) else None
        seen, tokens = (own.to(text.device) for own in self._seen[text.shape[1]])
        same = (marks[:, None] == seen.to(marks.dtype)).all(-1)
        if not bool((same.any(-1, keepdim=True) | is_zero).all()):
            return None
        return tokens[same.int().argmax(-1)].masked_fill(is_zero, -1)


def places_of(wanted: Sequence[int], tokens: Tensor) -> Tensor:
    """Where texts say some tokens one after the other, `(batch, tokens)` bool.

    Args:
        wanted: at least one token.
        tokens: of the texts, `(batch, tokens)`.
    """
    said = torch.zeros_like(tokens, dtype=torch.bool)
    length = len(wanted)
    if tokens.shape[1] >= length:
        row = torch.tensor(wanted, device=tokens.device)
        begins = (tokens.unfold(1, length, 1) == row).all(-1)
        for offset in range(length):
            said[:, offset : offset + begins.shape[1]] |= begins
    return said
