"""Which layers of a model an adapter file means."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.quantised import full_rank_of
from svfit_diffusion.errors import CheckpointError, listed


def match_layers(
    deltas: Mapping[str, Tensor], layers: Mapping[str, Shiftable], component: str
) -> dict[str, str]:
    """The module path in a model of each path of an adapter.

    Args:
        deltas: shifts by path, with or without `text_model.`.
        layers: the model's layers by path.
        component: its name, for messages.

    Raises:
        CheckpointError: a layer does not exist, or has fewer singular values than the shift.
    """
    matched: dict[str, str] = {}
    problems = []
    for path, delta in deltas.items():
        spellings = (path, path.removeprefix("text_model."), f"text_model.{path}")
        own = next((spelling for spelling in spellings if spelling in layers), None)
        if own is None:
            problems.append(f"{component} has no Linear or Conv layer {path!r}")
        elif own in matched.values():
            problems.append(f"{component}.{own} is given twice, with and without 'text_model.'")
        elif delta.numel() > (full := full_rank_of(layers[own])):
            problems.append(f"{component}.{path}: {delta.numel()} values, the layer has {full}")
        else:
            matched[path] = own
    if problems:
        raise CheckpointError(listed("the adapter does not fit this base model", problems))
    return matched
