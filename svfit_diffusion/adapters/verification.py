"""Whether the weights and singular vectors at hand are those that an adapter was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from svfit_diffusion.errors import BaseMismatchError
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import cache_directory
from svfit_diffusion.spectrum.sketch import TOLERANCE, distance, sketch

logger = logging.getLogger(__name__)


def check_base(
    component: str, found: str, metadata: AdapterMetadata, way_out: str, quantization: str = ""
) -> None:
    """Raise `BaseMismatchError` if an adapter was trained on other weights.

    Args:
        component: of the pipeline.
        found: fingerprint of its weights under the adapter.
        metadata: of the adapter; one that knows no fingerprint fits anything.
        way_out: what to do if the base is a fine-tune, for the message.
        quantization: how the weights here are quantised, `""` if they are not.
    """
    expected = metadata.fingerprints.get(component)
    if expected is not None and expected != found:
        trained_on = metadata.quantization.get(component, "")
        if trained_on != quantization:
            raise BaseMismatchError(
                f"the adapter was trained on a base model whose {component} is "
                f"{_as_quantised(trained_on)}, and the one here is {_as_quantised(quantization)}: "
                f"its singular vectors are others, by which the adapter does something else, by a "
                f"third at 8 bits and altogether at 4; load that base in the same way, or make a "
                f"LoRA of the adapter on it (svfit export), which fits both, or {way_out} all the "
                f"same"
            )
        raise BaseMismatchError(
            f"the adapter was trained on another base model: its {component} belongs to "
            f"{metadata.base_model or 'an unnamed model'} (fingerprint {expected[:12]}…), the one "
            f"here is {found[:12]}…; load that base, or {way_out} if this one is a fine-tune of it"
        )


def _as_quantised(quantization: str) -> str:
    return f"quantised as {quantization}" if quantization else "not quantised"


def with_vectors(
    component: str, deltas: Mapping[str, Tensor], bases: Mapping[str, Basis]
) -> dict[str, Tensor]:
    """Shifts cut to the singular values above zero: those beyond have no vectors of their own.

    Layers of which nothing is left are left out.
    """
    cut = {}
    for path, delta in deltas.items():
        rank = bases[path].rank
        if delta[rank:].any():
            logger.warning(
                "%s.%s: %d of the adapter's values belong to singular values of zero, which have "
                "no vectors of their own; they are left out",
                component,
                path,
                delta.numel() - rank,
            )
        if rank:
            cut[path] = delta[:rank]
    return cut


def check_sketches(
    component: str,
    deltas: Mapping[str, Tensor],
    sketches: Mapping[str, Tensor],
    bases: Mapping[str, Basis],
) -> None:
    """Raise `BaseMismatchError` if the singular vectors are not those of the training."""
    far = {}
    for path, delta in deltas.items():
        if path in sketches:
            share = distance(sketch(bases[path], delta), sketches[path], delta)
            if not share <= TOLERANCE:
                far[path] = share
    if far:
        worst = max(far, key=lambda path: far[path])
        raise BaseMismatchError(
            f"the singular vectors computed here are not those that the adapter was trained with: "
            f"in {len(far)} of {len(deltas)} layers of the {component}, most in {worst}, "
            f"where its change would differ by {far[worst]:.0%}. If the cache is damaged, delete "
            f"{cache_directory()} and load again; else the solver of that machine resolves "
            f"singular values that nearly meet in another way, and the adapter does not fit here"
        )
