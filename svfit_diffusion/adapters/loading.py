"""Putting a loaded adapter on the models of a pipeline: on all it shifts, or on none."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.components import Models, adapter_names, refuse_change
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.matching import match_layers
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    CheckpointError,
    ConfigError,
)
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import (
    BaseWeights,
    cache_directory,
    fingerprint,
    load_bases,
)
from svfit_diffusion.spectrum.sketch import TOLERANCE, distance, sketch

logger = logging.getLogger(__name__)


def only_components(adapter: Adapter, components: Collection[str]) -> Adapter:
    """The part of an adapter that shifts some components.

    Raises:
        ConfigError: it does not shift one of them.
    """
    missing = [component for component in components if component not in adapter.deltas]
    if missing or isinstance(components, str) or not components:
        raise ConfigError(
            f"got components={components!r}; the adapter shifts {', '.join(adapter.deltas)}: give "
            f"a list of some of these"
        )
    deltas = {c: layers for c, layers in adapter.deltas.items() if c in components}
    sketches = {c: layers for c, layers in adapter.sketches.items() if c in components}
    return Adapter(deltas, adapter.metadata, sketches)


@torch.inference_mode(False)
def put_adapter(
    models: Models,
    adapter: Adapter,
    adapter_name: str,
    *,
    ignore_base_mismatch: bool = False,
    trainable: bool = False,
    show_progress: bool = True,
) -> None:
    """Add a loaded adapter, inactive, to the models it shifts; all checks come first.

    Raises:
        CheckpointError: it shifts components or layers that are not there.
        BaseMismatchError: it was trained on other weights, or with other singular vectors.
        BasisError: a weight cannot be decomposed.
        AdapterNameError: the name is taken.
        StateError: adapters are fused, or given per prompt at the moment; or weights are not in
            memory, or were changed by something else.
    """
    if adapter_name in adapter_names(models):
        raise AdapterNameError(
            f"adapter name {adapter_name!r} is taken; delete that adapter or use another name"
        )
    refuse_change(models, "load an adapter")
    _refuse_missing(adapter, models)
    parts = [_part(adapter, component, models) for component in adapter.deltas]
    if not ignore_base_mismatch:
        for part in parts:
            _check_base(part, adapter.metadata)
    known_base = adapter.metadata.fingerprints
    found_base = {part.component: part.fingerprint for part in parts}
    for part in parts:
        part.bases = load_bases(part.base, show_progress=show_progress)
        _drop_values_without_vectors(part)
        if found_base[part.component] == known_base.get(part.component):
            _check_sketches(part)
    # A bare state dict says nothing of its base; layers may have been left out.
    now = {part.component: part.fingerprint for part in parts}
    fingerprints = {
        c: now[c] if found_base.get(c) == base else base
        for c, base in (known_base or found_base).items()
    }
    metadata = replace(adapter.metadata, fingerprints=fingerprints)
    added: list[Injection] = []
    try:
        for part in parts:
            _add(part, adapter_name, trainable=trainable)
            added.append(part.injection)
            part.injection.metadata[adapter_name] = metadata
            part.injection.spans[adapter_name] = tuple(adapter.deltas)
    except BaseException:
        for injection in added:
            injection.forget([adapter_name])
        raise


def _add(part: _Part, adapter_name: str, *, trainable: bool) -> None:
    kept = {p: b.truncated(part.deltas[p].numel()) for p, b in part.bases.items()}
    part.injection.add_adapter(adapter_name, part.deltas, kept, part.digests, trainable=trainable)


@dataclass
class _Part:
    """What an adapter does to one component.

    Attributes:
        component: its name.
        injection: of its model.
        deltas: shifts by the model's paths.
        sketches: of them, where the file has them.
        base: the weights whose basis is not known yet.
        digests: of all weights.
        bases: of `base`.
    """

    component: str
    injection: Injection
    deltas: dict[str, Tensor]
    sketches: dict[str, Tensor]
    base: BaseWeights
    digests: dict[str, str]
    bases: dict[str, Basis] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the base's weights under the adapter."""
        return fingerprint(self.digests)

    def basis(self, path: str) -> Basis:
        """Of a layer, computed now or brought by an earlier adapter."""
        return self.bases[path] if path in self.bases else self.injection.layers[path].basis


def _refuse_missing(adapter: Adapter, models: Models) -> None:
    missing = [component for component in adapter.deltas if component not in models]
    if missing:
        here = [component for component in adapter.deltas if component in models]
        way = f"; load it without them by components={here!r}" if here else ""
        raise CheckpointError(
            f"the adapter shifts {', '.join(adapter.deltas)}; this pipeline has "
            f"{', '.join(models) or 'no model that adapters can shift'} and no "
            f"{' and no '.join(missing)}{way}"
        )


def _part(adapter: Adapter, component: str, models: Models) -> _Part:
    """What there is to know before anything is computed."""
    model = models[component]
    injection = Injection.of(model)
    injection.applied.refuse_foreign_changes()
    layers = shiftable_layers(model)
    paths = match_layers(adapter.deltas[component], layers, component)
    deltas = {paths[path]: delta for path, delta in adapter.deltas[component].items()}
    sketches = {paths[path]: s for path, s in adapter.sketches.get(component, {}).items()}
    known = injection.at_hand({path: delta.numel() for path, delta in deltas.items()})
    base = base_weights(model, {path: layers[path] for path in deltas if path not in known})
    return _Part(component, injection, deltas, sketches, base, known | base.digests)


def _check_base(part: _Part, metadata: AdapterMetadata) -> None:
    expected, found = metadata.fingerprints.get(part.component), part.fingerprint
    if expected is not None and expected != found:
        raise BaseMismatchError(
            f"the adapter was trained on another base model: its {part.component} belongs to "
            f"{metadata.base_model or 'an unnamed model'} (fingerprint {expected[:12]}…), this "
            f"pipeline's is {found[:12]}…; load that base, or pass "
            f"ignore_base_mismatch=True if this one is a fine-tune of it"
        )


def _drop_values_without_vectors(part: _Part) -> None:
    """Cut shifts to the singular values above zero: those beyond have no vectors of their own."""
    for path, delta in part.deltas.items():
        rank = part.basis(path).rank
        if delta[rank:].any():
            logger.warning(
                "%s.%s: %d of the adapter's values belong to singular values of zero, which have "
                "no vectors of their own; they are left out",
                part.component,
                path,
                delta.numel() - rank,
            )
        part.deltas[path] = delta[:rank]
    for path in [path for path, delta in part.deltas.items() if not delta.numel()]:
        del part.deltas[path], part.digests[path], part.bases[path]
        part.sketches.pop(path, None)


def _check_sketches(part: _Part) -> None:
    """Raise `BaseMismatchError` if the singular vectors are not those of the training."""
    far = {}
    for path, expected in part.sketches.items():
        delta = part.deltas[path]
        share = distance(sketch(part.basis(path), delta), expected, delta)
        if not share <= TOLERANCE:
            far[path] = share
    if far:
        worst = max(far, key=lambda path: far[path])
        raise BaseMismatchError(
            f"the singular vectors computed here are not those that the adapter was trained with: "
            f"in {len(far)} of {len(part.deltas)} layers of the {part.component}, most in {worst}, "
            f"where its change would differ by {far[worst]:.0%}. If the cache is damaged, delete "
            f"{cache_directory()} and load again; else the solver of that machine resolves "
            f"singular values that nearly meet in another way, and the adapter does not fit here"
        )
