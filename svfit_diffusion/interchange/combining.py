"""Adapters made of adapters: weighted sums, and smaller ones. No base model is needed.

All shift the same singular values, so their shifts add up, and with them their sketches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svfit_diffusion.adapters.sources import AdapterSource
from svfit_diffusion.errors import BaseMismatchError, InterchangeError
from svfit_diffusion.files.adapter import Adapter, refuse_words
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions
from svfit_diffusion.interchange.based import adapter_of
from svfit_diffusion.interchange.truncation import Truncation, truncation
from svfit_diffusion.spectrum.shift import pad_sum

logger = logging.getLogger(__name__)

_Vectors = Mapping[str, Mapping[str, Tensor]]


def merge_adapters(weighted: Sequence[tuple[Adapter | AdapterSource, float]]) -> Adapter:
    """One adapter that does what several do together: the sum of their shifts.

    The difference of two is `merge_adapters([(one, 1), (other, -1)])`.

    Args:
        weighted: adapters of one base model, as files, folders, hub ids or in memory, and their
            strengths.

    Returns:
        The adapter. Where its parts shift different layers of a component, the base's fingerprint
        is not known of the sum, nor are sketches that a part lacks; `with_base` adds both.

    Raises:
        InterchangeError: there is nothing to merge.
        CheckpointError: a file is no adapter.
        BaseMismatchError: the adapters belong to different base models.
    """
    parts = [(_plainly_named(adapter_of(source)), float(weight)) for source, weight in weighted]
    if not parts:
        raise InterchangeError("no adapters to merge: give pairs of an adapter and its strength")
    adapters = [adapter for adapter, _ in parts]
    for adapter in adapters:
        refuse_words(adapter, "merge adapters")
    deltas = _sums([(weight, adapter.deltas) for adapter, weight in parts])
    sketches = _sums([(weight, adapter.sketches) for adapter, weight in parts])
    unknown = {c for a in adapters for c in a.deltas if a.deltas[c].keys() != _paths(a.sketches, c)}
    metadata = metadata_of_all(adapters, _fingerprints(adapters))
    return Adapter(deltas, metadata, {c: s for c, s in sketches.items() if c not in unknown})


@dataclass(frozen=True)
class Reduction:
    """An adapter of fewer values.

    Attributes:
        adapter: the adapter, of the same layers; without the sketches of components that have lost
            values, which `with_base` adds.
        error: root of the dropped δ² over δ², of all layers together.
        errors: the same of each layer, by `<component>.<module path>`.
    """

    adapter: Adapter
    error: float
    errors: dict[str, float]


def reduce_adapter(
    adapter: Adapter | AdapterSource,
    *,
    rank: int | None = None,
    budget: int | None = None,
    smallest: float = 0.0,
) -> Reduction:
    """Set the smallest values of an adapter to zero, so that its file gets smaller.

    Args:
        adapter: the adapter.
        rank: how many values to keep in each layer.
        budget: how many to keep in all layers together.
        smallest: values below this are dropped.

    Raises:
        InterchangeError: a number is out of range, or nothing would be left.
        CheckpointError: a file is no adapter.
    """
    if (budget is not None and budget < 1) or smallest < 0:
        raise InterchangeError(
            f"budget must be at least 1 and smallest at least 0, got {budget} and {smallest}"
        )
    adapter = adapter_of(adapter)
    shifts = {f"{c}.{p}": d for c, own in adapter.deltas.items() for p, d in own.items()}
    kept = truncation(shifts, rank, None).kept
    kept = {name: at[shifts[name][at].abs() >= smallest] for name, at in kept.items()}
    if budget is not None:
        kept = _strongest(shifts, kept, budget)
    if not any(at.numel() for at in kept.values()):
        raise InterchangeError(f"no value of the adapter reaches {smallest}; keep smaller ones")
    left = Truncation.of(shifts, kept)
    deltas = {
        component: {p: _only(delta, kept[f"{component}.{p}"]) for p, delta in own.items()}
        for component, own in adapter.deltas.items()
    }
    sketches = {
        component: own
        for component, own in adapter.sketches.items()
        if all(torch.equal(d, deltas[component][p]) for p, d in adapter.deltas[component].items())
    }
    reduced = replace(adapter, deltas=deltas, sketches=sketches)
    return Reduction(reduced, left.error, left.errors)


def _strongest(
    shifts: Mapping[str, Tensor], kept: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Those of the positions kept that hold the `count` largest values of all layers."""
    values = torch.cat([shifts[name][at].abs() for name, at in kept.items()])
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.topk(min(count, values.numel())).indices] = True
    parts = chosen.split([at.numel() for at in kept.values()])
    return {name: at[part] for (name, at), part in zip(kept.items(), parts, strict=True)}


def _only(delta: Tensor, kept: Tensor) -> Tensor:
    return torch.zeros_like(delta).index_copy(0, kept, delta[kept])


def _plainly_named(adapter: Adapter) -> Adapter:
    """With the paths of transformers 5, so that equal layers have equal names."""

    def plain(vectors: _Vectors) -> dict[str, dict[str, Tensor]]:
        return {
            component: {path.removeprefix("text_model."): vector for path, vector in own.items()}
            for component, own in vectors.items()
        }

    return replace(adapter, deltas=plain(adapter.deltas), sketches=plain(adapter.sketches))


def _sums(weighted: Sequence[tuple[float, _Vectors]]) -> dict[str, dict[str, Tensor]]:
    """The weighted sum of the vectors of each layer, over those that have the layer."""
    terms: dict[str, dict[str, list[tuple[float, Tensor]]]] = {}
    for weight, vectors in weighted:
        for component, own in vectors.items():
            for path, vector in own.items():
                terms.setdefault(component, {}).setdefault(path, []).append((weight, vector))
    return {c: {path: pad_sum(sums) for path, sums in own.items()} for c, own in terms.items()}


def _paths(vectors: _Vectors, component: str) -> Iterable[str]:
    return vectors.get(component, {}).keys()


def _fingerprints(adapters: Sequence[Adapter]) -> dict[str, str]:
    """The fingerprint of each component of which all adapters shift the same layers."""
    found: dict[str, str] = {}
    for component in dict.fromkeys(c for adapter in adapters for c in adapter.deltas):
        there = [adapter for adapter in adapters if component in adapter.deltas]
        known = _unique(a.metadata.fingerprints.get(component, "") for a in there)
        if any(a.deltas[component].keys() != there[0].deltas[component].keys() for a in there):
            logger.warning(
                "The adapters shift different layers of the %s, so whether they belong to one base "
                "model was not checked",
                component,
            )
        elif len(known) > 1:
            bases = _unique(adapter.metadata.base_model or "an unnamed one" for adapter in there)
            raise BaseMismatchError(
                f"the adapters belong to different base models ({', '.join(bases)}): their "
                f"{component} has fingerprints {', '.join(f'{text[:12]}…' for text in known)}; "
                f"merge adapters of one base"
            )
        elif known:
            found[component] = known[0]
    return found


def metadata_of_all(adapters: Sequence[Adapter], fingerprints: dict[str, str]) -> AdapterMetadata:
    """What is known of what several adapters make together.

    Args:
        adapters: at least one.
        fingerprints: of the base that they share, per component.
    """
    known = [adapter.metadata for adapter in adapters]
    bases = {(metadata.base_model, metadata.base_revision) for metadata in known}
    base_model, base_revision = bases.pop() if len(bases) == 1 else (known[0].base_model, "")
    return AdapterMetadata(
        base_model=base_model,
        base_revision=base_revision,
        fingerprints=fingerprints,
        quantization={c: kind for m in known for c, kind in m.quantization.items()},
        instance_prompt=", ".join(_unique(metadata.instance_prompt for metadata in known)),
        class_prompt=", ".join(_unique(metadata.class_prompt for metadata in known)),
        versions=package_versions(),
    )


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))
