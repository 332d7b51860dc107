"""Putting a loaded adapter on the models of a pipeline: on all it shifts, or on none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.base_weights import base_weights, stored_bases
from svfit_diffusion.adapters.components import Models, adapter_names, refuse_change
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.matching import match_layers
from svfit_diffusion.adapters.quantised import quantizations_in, spelled
from svfit_diffusion.adapters.readers import readers_of
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.adapters.verification import check_base, check_sketches, with_vectors
from svfit_diffusion.errors import AdapterNameError, CheckpointError, ConfigError
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.files.own_word import OwnWord
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import BaseWeights, fingerprint, load_bases


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
    words = {c: word for c, word in adapter.words.items() if c in components}
    return Adapter(deltas, adapter.metadata, sketches, words)


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
        CacheError: the disk has no room for what must be computed.
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
            way_out = "pass ignore_base_mismatch=True"
            kind = part.quantization
            check_base(part.component, part.fingerprint, adapter.metadata, way_out, kind)
    known_base = adapter.metadata.fingerprints
    found_base = {part.component: part.fingerprint for part in parts}
    for part in parts:
        ranks = {path: part.deltas[path].numel() for path in part.base.weights}
        part.bases = load_bases(part.base, ranks, show_progress=show_progress)
        _drop_values_without_vectors(part)
        if found_base[part.component] == known_base.get(part.component):
            check_sketches(part.component, part.deltas, part.sketches, part.all_bases)
    # A bare state dict says nothing of its base; layers may have been left out.
    now = {part.component: part.fingerprint for part in parts}
    fingerprints = {
        c: now[c] if found_base.get(c) == base else base
        for c, base in (known_base or found_base).items()
    }
    quantization = adapter.metadata.quantization
    if not known_base:
        quantization = {part.component: kind for part in parts if (kind := part.quantization)}
    metadata = replace(adapter.metadata, fingerprints=fingerprints, quantization=quantization)
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
    if part.word:
        part.injection.words.add(adapter_name, *part.word)


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
        quantization: of all weights.
        word: of the adapter's own, and the encoder of the text that it stands in, if it has one.
        bases: of `base`.
    """

    component: str
    injection: Injection
    deltas: dict[str, Tensor]
    sketches: dict[str, Tensor]
    base: BaseWeights
    digests: dict[str, str]
    quantization: str
    word: tuple[OwnWord, nn.Module] | None
    bases: dict[str, Basis] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the base's weights under the adapter."""
        return fingerprint(self.digests)

    @property
    def all_bases(self) -> dict[str, Basis]:
        """Of all layers: computed now, or brought by an earlier adapter."""
        here = self.injection.layers
        return {path: self.bases.get(path) or here[path].basis for path in self.deltas}


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
    expected = adapter.metadata.fingerprints.get(component)
    if quantizations_in(base) and expected not in (None, fingerprint(known | base.digests)):
        # An adapter of this base before it was quantised: by the same vectors it does the same.
        alike = stored_bases(model, base.weights)
        base = next((s for s in alike if fingerprint(known | s.digests) == expected), base)
    quantization = spelled(
        [*quantizations_in(base), *(injection.layers[path].quantization for path in known)]
    )
    digests = known | base.digests
    own = adapter.words.get(component)
    word = _word(own, models, component) if own else None
    return _Part(component, injection, deltas, sketches, base, digests, quantization, word)


def _word(word: OwnWord, models: Models, component: str) -> tuple[OwnWord, nn.Module]:
    """A word that a component reads, and what encodes the text that it stands in.

    Raises:
        CheckpointError: the component does not read such a word, or nothing encodes its text.
    """
    try:
        readers = readers_of(models[component])
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if tuple(word.vectors.shape) != readers.shape:
        raise CheckpointError(
            f"the adapter's word {word.identifier!r} has vectors of {tuple(word.vectors.shape)}, "
            f"this {component} reads {readers.shape}"
        )
    if readers.encoder not in models:
        raise CheckpointError(
            f"the adapter has a word of its own, {word.identifier!r}, and the pipeline no "
            f"{readers.encoder}, which tells where prompts say it: load the pipeline whole"
        )
    return word, models[readers.encoder]


def _drop_values_without_vectors(part: _Part) -> None:
    part.deltas = with_vectors(part.component, part.deltas, part.all_bases)
    for path in [path for path in part.bases if path not in part.deltas]:
        del part.digests[path], part.bases[path]
