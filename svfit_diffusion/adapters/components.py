"""The models of a pipeline, and the adapters they carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from svfit_diffusion.adapters.applied import make
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.selection import Selection, check_known
from svfit_diffusion.errors import StateError
from svfit_diffusion.files.adapter import COMPONENTS, Adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.sketch import sketch

Models = Mapping[str, nn.Module]
"""Models by the name of their pipeline component, such as `{"unet": …, "text_encoder": …}`."""


def models_of(pipe: Any) -> dict[str, nn.Module]:
    """The models of a pipeline that adapters may shift, without `torch.compile` wrappers."""
    models = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        if isinstance(model, nn.Module):
            models[component] = getattr(model, "_orig_mod", model)
    return models


def injections(models: Models) -> dict[str, Injection]:
    """The injections of those models that carry adapters."""
    found = {component: Injection.find(model) for component, model in models.items()}
    return {component: injection for component, injection in found.items() if injection}


def adapter_names(models: Models) -> list[str]:
    """Names of all adapters on the models, each once, in order."""
    names = [name for i in injections(models).values() for name in i.adapter_names]
    return list(dict.fromkeys(names))


def check_names(models: Models, names: Sequence[str]) -> None:
    """Raise `AdapterNameError` if one of `names` is on none of the models."""
    check_known(names, adapter_names(models))


def refuse_change(models: Models, what: str) -> None:
    """Raise `StateError` if adapters are fused or mixed on a model, or as `refuse_copies`; `what`
    completes "cannot …".
    """
    for injection in injections(models).values():
        injection.selection.refuse_change(what)
    refuse_copies(models, what)


def refuse_copies(models: Models, what: str) -> None:
    """Raise `StateError` if a model is a copy whose weights hold an adapter for good, as
    `AnimateDiffPipeline.from_pipe` makes one; `what` completes "cannot …".
    """
    found = injections(models)
    for injection in found.values():
        for name, span in injection.spans.items():
            copies = [c for c in span if c in models and name not in _names(found.get(c))]
            if copies:
                raise StateError(
                    f"cannot {what}: adapter {name!r} is on this pipeline's "
                    f"{', '.join(c for c in span if c not in copies)} but not on its "
                    f"{', '.join(copies)}, a copy that was made while the adapter was set and may "
                    f"hold it in its weights; make this pipeline from a base without the adapter, "
                    f"and load it here"
                )


def _names(injection: Injection | None) -> Sequence[str]:
    return injection.adapter_names if injection else ()


def select(models: Models, selections: Mapping[str, Selection]) -> None:
    """Let selections act, by component, on all of the models at once.

    Raises:
        StateError: weights are not in memory or were changed by something else, or another thread
            is drawing; nothing is changed.
    """
    found = injections(models)
    make([found[component].prepare(selection) for component, selection in selections.items()])
    for component, selection in selections.items():
        found[component].selection = selection


def remove_adapters(models: Models, names: Sequence[str]) -> None:
    """Remove adapters from all models, or from none: `StateError` as for `select`."""
    found = {
        injection: [name for name in names if name in injection.adapter_names]
        for injection in injections(models).values()
    }
    here = {injection: own for injection, own in found.items() if own}
    make([injection.prepare_removal(own) for injection, own in here.items()])
    for injection, own in here.items():
        injection.forget(own)


def eject_all(models: Models) -> None:
    """Remove all adapters from all models, fused or not: `StateError` as for `select`."""
    found = list(injections(models).values())
    make([injection.prepare_ejection() for injection in found])
    for injection in found:
        injection.selection = Selection()
        injection.forget(injection.adapter_names)


def collect_adapter(
    models: Models, adapter_name: str, metadata: AdapterMetadata | None = None
) -> Adapter:
    """The current values of an adapter over all models, as a file would hold them.

    Args:
        models: the models.
        adapter_name: the adapter.
        metadata: what to say of it; by default what it was loaded with. The fingerprints of its
            base are added where it has none.

    Raises:
        AdapterNameError: there is no such adapter.
    """
    check_names(models, [adapter_name])
    deltas, fingerprints, quantization, sketches, words = {}, {}, {}, {}, {}
    for component, injection in injections(models).items():
        if adapter_name in injection.adapter_names:
            shifts = dict(injection.sigma_parameters(adapter_name))
            fingerprints[component] = injection.fingerprint(adapter_name)
            if kind := injection.quantization(adapter_name):
                quantization[component] = kind
            deltas[component] = {
                path: shift.detach().to("cpu", copy=True) for path, shift in shifts.items()
            }
            sketches[component] = {
                path: sketch(injection.layers[path].basis, shift) for path, shift in shifts.items()
            }
            if word := injection.words.of(adapter_name):
                words[component] = word
            metadata = metadata or injection.metadata.get(adapter_name)
    metadata = metadata or AdapterMetadata()
    if not metadata.fingerprints:
        metadata = replace(metadata, fingerprints=fingerprints, quantization=quantization)
    return Adapter(deltas, metadata, sketches, words)


def without_idle_layers(models: Models, adapter_name: str, adapter: Adapter) -> Adapter:
    """Leave out the layers of a collected adapter that hold nothing but zeros.

    A budget makes many of them. The fingerprints become those of the layers left. An adapter that
    shifts nothing at all stays as it is.
    """
    shifting = {
        component: {path: delta for path, delta in deltas.items() if delta.any()}
        for component, deltas in adapter.deltas.items()
    }
    deltas = {component: layers for component, layers in shifting.items() if layers}
    if not deltas:
        return adapter
    found = injections(models)
    left = {c: found[c].fingerprint(adapter_name, paths) for c, paths in deltas.items()}
    sketches = {c: _only(adapter.sketches[c], paths) for c, paths in deltas.items()}
    metadata = replace(adapter.metadata, fingerprints=left)
    return replace(adapter, deltas=deltas, metadata=metadata, sketches=sketches)


def _only(sketches: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    return {path: sketches[path] for path in paths}
