"""A pipeline's models as they are in training: frozen, in a precision, and in a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.quantised import cast_what_is_not_quantised, holds_quantised
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.families import Family

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What the base is cast to, by the name of a mixed precision."""

_Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]
"""Of a computation, and of the same again."""


def freeze(
    family: Family,
    trained_encoders: Sequence[str],
    precision: str,
    checkpointing: bool,
    owners: RowOwners | None = None,
) -> None:
    """Freeze and cast the models of a family's pipeline, and have them recompute if wanted.

    Args:
        family: of the pipeline.
        trained_encoders: components whose shifts are trained beside the denoiser's.
        precision: `no`, `fp16` or `bf16`.
        checkpointing: whether they keep little for the backward pass and compute again.
        owners: whose rows are whose, which holds when they compute again, too.
    """
    for part in family.pipe.components.values():
        if isinstance(part, nn.Module):
            if precision in PRECISIONS and holds_quantised(part):
                cast_what_is_not_quantised(part, PRECISIONS[precision])
            elif precision in PRECISIONS:
                part.to(PRECISIONS[precision])
            part.requires_grad_(False)
    if checkpointing or family.needs_training_mode:
        family.model.train()
    if checkpointing:
        kept = [owners.again] if owners else []
        for name in trained_encoders:
            encoder = getattr(family.pipe, name)
            encoder.gradient_checkpointing_enable(_checkpointing(kept))
            encoder.train()
        how = _checkpointing([*kept, partial(_words_again, family.model)])
        family.model.enable_gradient_checkpointing(partial(checkpoint, **how))


def _words_again(denoiser: nn.Module) -> _Contexts:
    """As `OwnWords.again`, of the adapters that are on a denoiser by then."""
    injection = Injection.find(denoiser)
    return injection.words.again() if injection else (nullcontext(), nullcontext())


def _checkpointing(keepers: Sequence[Callable[[], _Contexts]]) -> dict[str, Any]:
    """Of `torch.utils.checkpoint`: what is computed again finds what it found before."""

    def contexts() -> _Contexts:
        return nullcontext(), _all([again for _, again in (keeper() for keeper in keepers)])

    return {"use_reentrant": False, "context_fn": contexts} if keepers else {"use_reentrant": False}


@contextmanager
def _all(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
