"""A word of the subject's own: where it is named each block reads a vector beside the text.

That is extended textual conditioning (P+, arXiv 2303.09522) on top of another method. Prompts that
do not name the subject are read as before, so it adds nothing to drift.

A transformer's text goes along with the picture, and what the identifier says reaches the word
after it, which names the class. In a UNet each layer reads the text anew: there that word gets a
vector, too, and only values are changed, not keys, so that it is still looked at where the thing is
(key-locking, arXiv 2305.01644).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from benchmarks.adapting import Adapt, Adapted, Models

_IDENTIFIER = "sks"
_TEXT = "encoder_hidden_states"


def with_own_word(adapt: Adapt, gain: float = 4.0) -> Adapt:
    """Train a vector for each block that reads the text, beside what a method trains.

    Args:
        adapt: the method.
        gain: times the text's own size, what a vector of ones adds to it: one learning rate serves
            both, so it is larger where the method's is lower.
    """

    def adapt_both(models: Models, steps: int) -> Adapted:
        adapted = adapt(models, steps)
        word = _OwnWord(models, gain)

        def save(folder: Path) -> None:
            adapted.save(folder)
            word.save(folder)

        return dataclasses.replace(
            adapted,
            parameters=[*adapted.parameters, word.vectors],
            save=save,
            attached=word.attached,
        )

    return adapt_both


class _OwnWord:
    """Vectors `(readers, places, width)` for the identifier's tokens, and the one after them."""

    def __init__(self, models: Models, gain: float) -> None:
        self._gain = gain
        name = next(name for name in ("transformer", "unet") if name in models)
        self._denoiser = models[name]
        self._readers = _readers(self._denoiser)
        shape = len(self._readers.modules), self._readers.places, self._readers.width
        device = next(self._denoiser.parameters()).device
        self.vectors = nn.Parameter(torch.zeros(shape, device=device))
        self._known: Tensor | None = None
        self._where: list[Tensor] = []

    def save(self, folder: Path) -> None:
        tensors = {"own_word": self.vectors.detach().contiguous()}
        safetensors.torch.save_file(tensors, folder / "own_word.safetensors")

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        """While the pipeline's identifiers are read so."""
        encoder, tokenizer = (
            (pipe.text_encoder_2, pipe.tokenizer_2)
            if getattr(pipe, "text_encoder_2", None) is not None
            else (pipe.text_encoder, pipe.tokenizer)
        )
        wanted = tokenizer(_IDENTIFIER, add_special_tokens=False).input_ids
        hooks = [
            encoder.register_forward_hook(partial(self._note, wanted), with_kwargs=True),
            self._denoiser.register_forward_pre_hook(self._find, with_kwargs=True),
            *(
                reader.register_forward_pre_hook(partial(self._add, index), with_kwargs=True)
                for index, reader in enumerate(self._readers.modules)
            ),
        ]
        with ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            yield

    def _note(self, wanted: list[int], encoder: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Remember what the encoder makes of the identifier's tokens."""
        ids = args[0] if args else kwargs["input_ids"]
        runs = ids.unfold(1, len(wanted), 1) == torch.tensor(wanted, device=ids.device)
        found = [
            output[0][text, start : start + len(wanted)].detach()
            for text, start in runs.all(-1).nonzero().tolist()
        ]
        if found:
            before = [] if self._known is None else [self._known]
            self._known = torch.cat([*before, *found]).unique(dim=0)

    def _find(self, denoiser: Any, args: Any, kwargs: Any) -> None:
        """Where these are in the denoiser's text, `(batch, tokens)`, and where the next one is;
        empty where no prompt names the subject."""
        text = kwargs[_TEXT].detach() if _TEXT in kwargs else args[2].detach()
        if self._known is not None:
            named = (text[:, :, None] == self._known.to(text.dtype)).all(-1).any(-1)
            after = pad(named, (1, 0))[:, :-1] & ~named
            self._where = [named, after][: self._readers.places] if named.any() else []

    def _add(self, index: int, reader: Any, args: Any, kwargs: Any) -> Any:
        text = kwargs.get(_TEXT) if self._readers.by_keyword else args[0]
        if text is None or not self._where:
            return None
        size = self._gain * text.detach().square().mean(-1, keepdim=True).sqrt()
        for vector, place in zip(self.vectors[index].to(text.dtype), self._where, strict=True):
            text = text + size * vector * place[..., None]
        return (args, {**kwargs, _TEXT: text}) if self._readers.by_keyword else ((text,), kwargs)


@dataclass(frozen=True)
class _Readers:
    """What reads the text.

    Attributes:
        modules: each reads it once.
        width: of the text, as they read it.
        places: whose vectors they get: 1 is the identifier's tokens, 2 also the token after them.
        by_keyword: whether the text comes by its name, or else first.
    """

    modules: list[nn.Module]
    width: int
    places: int
    by_keyword: bool


def _readers(denoiser: nn.Module) -> _Readers:
    """A transformer's blocks, or the values of a UNet's cross-attention."""
    blocks = [
        block
        for name in ("transformer_blocks", "single_transformer_blocks")
        for block in getattr(denoiser, name, ())
    ]
    config: Any = denoiser.config
    if blocks:
        width = config.num_attention_heads * config.attention_head_dim
        return _Readers(blocks, width, places=1, by_keyword=True)
    values = [layer for name, layer in denoiser.named_modules() if name.endswith("attn2.to_v")]
    return _Readers(values, config.cross_attention_dim, places=2, by_keyword=False)
