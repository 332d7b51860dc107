"""A word of the subject's own: where it is named each block reads a vector beside the text.

That is extended textual conditioning (P+, arXiv 2303.09522) on top of another method. Prompts that
do not name the subject are read as before, so it adds nothing to drift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

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
    """Vectors `(readers, width)` for the identifier's tokens."""

    def __init__(self, models: Models, gain: float) -> None:
        self._gain = gain
        name = next(name for name in ("transformer", "unet") if name in models)
        self._denoiser = models[name]
        self._readers, width = _readers(self._denoiser)
        device = next(self._denoiser.parameters()).device
        self.vectors = nn.Parameter(torch.zeros(len(self._readers), width, device=device))
        self._known: Tensor | None = None
        self._where: Tensor | None = None

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
                for index, reader in enumerate(self._readers)
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
        """Where these are in the denoiser's text, `(batch, tokens)`."""
        text = kwargs[_TEXT].detach() if _TEXT in kwargs else args[2].detach()
        if self._known is not None:
            self._where = (text[:, :, None] == self._known.to(text.dtype)).all(-1).any(-1)

    def _add(self, index: int, reader: Any, args: Any, kwargs: Any) -> Any:
        text = kwargs.get(_TEXT)
        if text is None or self._where is None or not self._where.any():
            return None
        size = text.detach().square().mean(-1, keepdim=True).sqrt()
        vector = self._gain * size * self.vectors[index].to(text.dtype)
        return args, {**kwargs, _TEXT: text + vector * self._where[..., None]}


def _readers(denoiser: nn.Module) -> tuple[list[nn.Module], int]:
    """A transformer's blocks, or a UNet's layers of cross-attention, and how wide their text is."""
    blocks = [
        block
        for name in ("transformer_blocks", "single_transformer_blocks")
        for block in getattr(denoiser, name, ())
    ]
    config: Any = denoiser.config
    if blocks:
        return blocks, config.num_attention_heads * config.attention_head_dim
    layers = [layer for name, layer in denoiser.named_modules() if name.endswith(".attn2")]
    return layers, config.cross_attention_dim
