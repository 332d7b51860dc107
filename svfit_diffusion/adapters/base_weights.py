"""The weights of a base model as a basis needs them: its own, in the precision it is stored in."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.components import Models
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.quantised import KNOWN, packed, quantization_of
from svfit_diffusion.adapters.targets import select_targets
from svfit_diffusion.adapters.weights import refuse_weights_on_disk
from svfit_diffusion.errors import BasisError, StateError
from svfit_diffusion.files.base_files import model_folders, stored_tensors
from svfit_diffusion.spectrum.basis import Packed
from svfit_diffusion.spectrum.cache import BaseWeights, read_base

logger = logging.getLogger(__name__)


def base_weights(model: nn.Module, layers: Mapping[str, Shiftable]) -> BaseWeights:
    """Collect the own weights of some layers of a model, whatever adapters act, and hash them.

    Of a quantised weight it is the one that its layer computes with, which makes a base of its own.
    bfloat16 keeps too few bits for a basis (12–17 % error of the shift, DESIGN section 3), so for a
    model loaded in it these weights, and no others, are read from the files it was loaded from.

    Raises:
        BasisError: a weight is quantised in a way that is not known, parametrised, sharded, not in
            memory or not finite; it is named.
        StateError: group offloading keeps weights on disk.
    """
    refuse_weights_on_disk(model)
    dense: dict[str, Tensor] = {}
    quantised: dict[str, Packed] = {}
    applied = Injection.of(model).applied
    for path, layer in layers.items():
        try:
            weight = applied.own_weight(path, layer)
        except StateError as error:
            raise BasisError(f"{path}: {error}") from None
        if quantization_of(layer, weight):
            quantised[path] = packed(layer, weight)
        else:
            _refuse_strange(path, layer)
            dense[path] = weight
    if any(weight.dtype == torch.bfloat16 for weight in dense.values()):
        dense = _stored_weights(model, dense) or dense
    return read_base({path: quantised.get(path) or dense[path] for path in layers})


def stored_bases(model: Any, paths: Iterable[str]) -> Iterator[BaseWeights]:
    """What the weights of some layers may have been before they were quantised: those under their
    names in files that a model was loaded from, mapped; none where the files are gone.

    Raises:
        BasisError: one is not finite.
    """
    wanted = list(paths)
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    for folder, variant in itertools.product(model_folders(source), ("", "fp16")):
        stored = stored_tensors(folder, [f"{path}.weight" for path in wanted], variant)
        found = {path: stored.get(f"{path}.weight") for path in wanted}
        dense = {path: w for path, w in found.items() if w is not None and w.element_size() > 1}
        if wanted and len(dense) == len(wanted):
            yield read_base(dense)


def weights_of_models(models: Models, target: str | tuple[str, ...]) -> BaseWeights:
    """The own weights of the layers that a target means, by `<component>.<module path>`.

    Args:
        models: by component.
        target: as `SVFitConfig`'s.

    Raises:
        TargetError: it matches nothing in one of them.
        BasisError, StateError: as `base_weights`.
    """
    weights: dict[str, Tensor | Packed] = {}
    digests: dict[str, str] = {}
    for component, model in models.items():
        own = base_weights(model, select_targets(model, target))
        weights |= {f"{component}.{path}": weight for path, weight in own.weights.items()}
        digests |= {f"{component}.{path}": digest for path, digest in own.digests.items()}
    return BaseWeights(weights, digests)


def _refuse_strange(path: str, layer: nn.Module) -> None:
    weight = layer._parameters.get("weight")
    if weight is None:
        raise BasisError(
            f"{path}: its weight is computed by a parametrisation (weight norm, …); remove that "
            f"first, with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if type(weight) is not nn.Parameter:
        raise BasisError(
            f"{path}: cannot decompose a {type(weight).__name__} (a quantised or sharded weight); "
            f"load the base model unquantised and whole, or quantised by {KNOWN}"
        )


def _stored_weights(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights in the files that a bfloat16 `model` was loaded from, as they lie there, mapped.

    None where they are in bfloat16 too, and, with a warning, where the files are gone or hold other
    weights than the model.
    """
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    names = [f"{path}.weight" for path in weights]
    for folder, variant in itertools.product(model_folders(source), ("", "fp16")):
        stored = stored_tensors(folder, names, variant)
        if len(stored) < len(weights):
            continue
        found = {path: stored[f"{path}.weight"] for path in weights}
        if all(tensor.dtype == torch.bfloat16 for tensor in found.values()):
            return None  # published so: there is nothing more exact
        if all(_is_rounded(weights[path], tensor) for path, tensor in found.items()):
            return found
    logger.warning(
        "The base model is loaded in bfloat16 and its stored weights were not found at %r: "
        "singular vectors come from rounded weights, and adapters will differ by some percent "
        "between this base and a float32 or float16 load of it.",
        source,
    )
    return None


def _is_rounded(weight: Tensor, stored: Tensor) -> bool:
    """Whether a weight is a stored one, rounded to bfloat16."""
    return torch.equal(weight.cpu(), stored.to(torch.bfloat16))
