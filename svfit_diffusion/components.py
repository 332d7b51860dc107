"""One adapter over the several models of a pipeline: put it on all of them, or on none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from svfit_diffusion import spectral
from svfit_diffusion.basis import fingerprint, load_bases, read_base
from svfit_diffusion.checkpoint import COMPONENTS, Adapter, AdapterMetadata, match_layers
from svfit_diffusion.errors import AdapterNameError, BaseMismatchError, CheckpointError
from svfit_diffusion.injection import Injection, check_known, shiftable_layers

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


def check_names(models: Models, names: list[str]) -> None:
    """Raise `AdapterNameError` if one of `names` is on none of the models."""
    check_known(names, adapter_names(models))


def refuse_change(models: Models, what: str) -> None:
    """Raise `StateError` if adapters are fused or mixed on a model; `what` completes "cannot …"."""
    for injection in injections(models).values():
        injection.refuse_change(what)


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
        BaseMismatchError: it was trained on other weights.
        AdapterNameError: the name is taken.
        StateError: adapters are fused, or given per prompt at the moment.
    """
    if adapter_name in adapter_names(models):
        raise AdapterNameError(
            f"adapter name {adapter_name!r} is taken; delete that adapter or use another name"
        )
    refuse_change(models, "load an adapter")
    missing = [component for component in adapter.deltas if component not in models]
    if missing:
        raise CheckpointError(
            f"the adapter shifts {', '.join(missing)}, this pipeline has {', '.join(models)}"
        )
    matched = {}
    for component, deltas in adapter.deltas.items():
        full_ranks = {
            path: spectral.full_rank(layer.weight)
            for path, layer in shiftable_layers(models[component]).items()
        }
        matched[component] = match_layers(deltas, full_ranks, component)
    at_hand = {
        component: found.at_hand({path: delta.numel() for path, delta in deltas.items()})
        if (found := Injection.find(models[component]))
        else {}
        for component, deltas in matched.items()
    }
    bases = {
        component: read_base(models[component], [p for p in deltas if p not in at_hand[component]])
        for component, deltas in matched.items()
    }
    digests = {component: at_hand[component] | base.digests for component, base in bases.items()}
    if not ignore_base_mismatch:
        _check_base(digests, adapter.metadata)
    loaded = {
        component: load_bases(base, show_progress=show_progress)
        for component, base in bases.items()
    }
    for component, deltas in matched.items():
        kept = {p: b.truncated(deltas[p].numel()) for p, b in loaded[component].items()}
        injection = Injection.of(models[component])
        injection.add_adapter(adapter_name, deltas, kept, digests[component], trainable=trainable)
        injection.metadata[adapter_name] = adapter.metadata


def _check_base(digests: Mapping[str, Mapping[str, str]], metadata: AdapterMetadata) -> None:
    for component, of_layers in digests.items():
        expected, found = metadata.fingerprints.get(component), fingerprint(of_layers)
        if expected is not None and expected != found:
            raise BaseMismatchError(
                f"the adapter was trained on another base model: its {component} belongs to "
                f"{metadata.base_model or 'an unnamed model'} (fingerprint {expected[:12]}…), this "
                f"pipeline's is {found[:12]}…; load that base, or pass "
                f"ignore_base_mismatch=True if this one is a fine-tune of it"
            )


def collect_adapter(
    models: Models, adapter_name: str, metadata: AdapterMetadata | None = None
) -> Adapter:
    """The current values of an adapter over all models, as a file would hold them.

    Args:
        metadata: what to say of it; by default what it was loaded with, or for an adapter that
            did not come from a file the fingerprints of its base.

    Raises:
        AdapterNameError: there is no such adapter.
    """
    check_names(models, [adapter_name])
    deltas, fingerprints = {}, {}
    for component, injection in injections(models).items():
        if adapter_name in injection.adapter_names:
            fingerprints[component] = injection.fingerprint(adapter_name)
            deltas[component] = {
                path: parameter.detach().cpu()
                for path, parameter in injection.sigma_parameters(adapter_name)
            }
            metadata = metadata or injection.metadata.get(adapter_name)
    return Adapter(deltas, metadata or AdapterMetadata(fingerprints=fingerprints))


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
    return Adapter(deltas, replace(adapter.metadata, fingerprints=left))
