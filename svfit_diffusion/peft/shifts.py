"""Shifts by the names that PEFT gives them, checked like those of our own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from svfit_diffusion.errors import BaseMismatchError, CheckpointError, listed
from svfit_diffusion.files.adapter_tensors import VALUES, problems_in
from svfit_diffusion.spectrum.cache import fingerprint

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


def lengths(layers: Mapping[str, SVFitLayer], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values a file has for each of some layers, by their paths.

    Raises:
        CheckpointError: as `shifts_in`.
    """
    found = ((_own_path(layers, path), values) for path, values in shifts_in(tensors).items())
    return {path: len(values) for path, values in found if path is not None}


def plain_path(path: str) -> str:
    """A path in the model itself of one in what PEFT may have put around it."""
    return path.removeprefix(WRAPPED)


def _own_path(layers: Mapping[str, SVFitLayer], path: str) -> str | None:
    """What a model calls the layer that a file calls `path`."""
    # transformers 5 dropped the `text_model.` level of CLIPTextModel.
    spellings = (path, path.removeprefix("text_model."), f"text_model.{path}")
    here = {plain_path(own): own for own in layers}
    return next((here[spelling] for spelling in spellings if spelling in here), None)


def fit_shifts(
    layers: Mapping[str, SVFitLayer], adapter_name: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file with the names and lengths of shifts as a model has them.

    Args:
        layers: that the adapter shifts, by path.
        adapter_name: its name.
        tensors: shifts by PEFT's names, and others, which stay as they are.

    Raises:
        CheckpointError: a layer does not exist, or has fewer singular values.
    """
    fitted = {name: tensor for name, tensor in tensors.items() if not name.endswith(SUFFIX)}
    problems = []
    for path, values in shifts_in(tensors).items():
        own = _own_path(layers, path)
        if own is None:
            problems.append(f"no layer {path!r} is shifted here")
            continue
        try:
            fitted[own + SUFFIX] = layers[own].fitted(adapter_name, values)
        except CheckpointError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise CheckpointError(listed("the adapter does not fit this model or its config", problems))
    return fitted


def fingerprint_of(layers: Mapping[str, SVFitLayer]) -> str:
    """One digest of the base weights of some layers."""
    return fingerprint({path: layer.spectrum.digest for path, layer in layers.items()})


def check_fingerprint(expected: str | None, found: str) -> None:
    """Raise `BaseMismatchError` if an adapter's base is known, and another than the one here."""
    if expected is not None and expected != found:
        raise BaseMismatchError(
            f"the adapter was trained on other weights: its base_fingerprint is "
            f"{expected[:12]}…, those here have {found[:12]}…; load the base model that it was "
            f"trained on, or set base_fingerprint=None in its config if this one is a fine-tune"
        )
