"""Shifts by the names that PEFT gives them, checked like those of our own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from svfit_diffusion.errors import BaseMismatchError, CheckpointError, listed
from svfit_diffusion.files.adapter_tensors import VALUES, problems_in
from svfit_diffusion.peft.config import SVFitConfig

if TYPE_CHECKING:
    from svfit_diffusion.peft.layer import SVFitLayer

SUFFIX = ".svfit_delta"
WRAPPED = "base_model.model."
"""How paths of a model begin in files, and below a `PeftModel`."""

_ANY = "transformer"  # `problems_in` wants a component, and reads nothing from it


def shifts_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The shifts `(r,)` among the tensors of a PEFT adapter, by module path.

    Raises:
        CheckpointError: there is none, or one has other values than shifts have.
    """
    named = {
        name.removeprefix(WRAPPED).removesuffix(SUFFIX): tensor
        for name, tensor in tensors.items()
        if name.endswith(SUFFIX)
    }
    problems = list(problems_in({f"{_ANY}.{p}{VALUES}": t for p, t in named.items()}, {_ANY}))
    if not named:
        problems = [f"no tensor is named …{SUFFIX}"]
    if problems:
        raise CheckpointError(listed("not the shifts of an SVFit adapter of PEFT's", problems))
    return named


def fit_shifts(
    layers: Mapping[str, SVFitLayer], adapter_name: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file with the names and lengths of shifts as a model has them.

    Args:
        layers: of the model, by path.
        adapter_name: for whom the layers have room.
        tensors: shifts by PEFT's names, and others, which stay as they are.

    Raises:
        CheckpointError: a layer does not exist, or has fewer singular values.
    """
    fitted = {name: tensor for name, tensor in tensors.items() if not name.endswith(SUFFIX)}
    problems = []
    here = {
        path.removeprefix(WRAPPED): (path, layer)
        for path, layer in layers.items()
        if adapter_name in layer.svfit_delta
    }
    for path, values in shifts_in(tensors).items():
        # transformers 5 dropped the `text_model.` level of CLIPTextModel.
        spellings = (path, path.removeprefix("text_model."), f"text_model.{path}")
        own = next((spelling for spelling in spellings if spelling in here), None)
        if own is None:
            problems.append(f"no layer {path!r} is shifted here")
            continue
        full_path, layer = here[own]
        try:
            fitted[full_path + SUFFIX] = layer.fitted(adapter_name, values)
        except CheckpointError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise CheckpointError(listed("the adapter does not fit this model or its config", problems))
    return fitted


def check_fingerprint(config: SVFitConfig, found: str) -> None:
    """Enter the fingerprint of the base in a config, or compare it with the one there.

    Raises:
        BaseMismatchError: they differ.
    """
    if config.base_fingerprint is None:
        config.base_fingerprint = found
    elif config.base_fingerprint != found:
        raise BaseMismatchError(
            f"the adapter was trained on other weights: its base_fingerprint is "
            f"{config.base_fingerprint[:12]}…, those here have {found[:12]}…; load the base model "
            f"that it was trained on, or set base_fingerprint=None in its config if this one is a "
            f"fine-tune of it"
        )
