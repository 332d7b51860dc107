"""An adapter on its base model, for as long as its change is read off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from svfit_diffusion.adapters.components import (
    Models,
    adapter_names,
    collect_adapter,
    injections,
    models_of,
)
from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.adapters.sources import AdapterSource, adapter_from
from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter
from svfit_diffusion.spectrum.basis import Basis


@dataclass(frozen=True)
class BasedLayer:
    """A shifted layer.

    Attributes:
        layer: the layer.
        basis: at least as many triplets as `delta` has values.
        delta: its shift `(r,)`.
    """

    layer: Shiftable
    basis: Basis
    delta: Tensor


@contextmanager
def based(
    models: Models, adapter: Adapter, ignore_base_mismatch: bool = False
) -> Iterator[dict[str, BasedLayer]]:
    """The layers that an adapter shifts, by `<component>.<module path>`, checked as loading does.

    The adapter lies on the models meanwhile, without acting.

    Raises:
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading the adapter.
    """
    with lent(models, adapter, ignore_base_mismatch) as name:
        yield {
            f"{component}.{path}": BasedLayer(layer.layer, layer.basis, layer.deltas[name])
            for component, injection in injections(models).items()
            for path, layer in injection.layers.items()
            if name in layer.deltas
        }


def with_base(pipe: Any, adapter: Adapter) -> Adapter:
    """An adapter with the fingerprints and sketches of a base model, by which loading checks it.

    Of use for adapters that were made of others: those of merged ones may be unknown.

    Args:
        pipe: a pipeline of the base.
        adapter: any adapter that fits; fingerprints that it has are checked.

    Raises:
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading the adapter.
    """
    models = models_of(pipe)
    with lent(models, adapter, False) as name:
        return collect_adapter(models, name)


@contextmanager
def lent(models: Models, adapter: Adapter, ignore_base_mismatch: bool) -> Iterator[str]:
    """Let an adapter lie on models, without acting, under a name that is yielded.

    Raises:
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading the adapter.
    """
    taken = adapter_names(models)
    name = next(n for i in range(len(taken) + 1) if (n := f"interchange_{i}") not in taken)
    put_adapter(models, adapter, name, ignore_base_mismatch=ignore_base_mismatch)
    try:
        yield name
    finally:
        for injection in injections(models).values():
            if name in injection.adapter_names:
                injection.forget([name])  # it never acted, so no weight has to be made anew


def adapter_of(source: Adapter | AdapterSource) -> Adapter:
    """An adapter, read if it is not yet one; `CheckpointError` as for loading."""
    return source if isinstance(source, Adapter) else adapter_from(source, WEIGHTS_NAME)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `InterchangeError` if a file must not be written at `path`."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise InterchangeError(f"{path} exists; choose another name, or pass overwrite=True")
    if not path.parent.is_dir():
        raise InterchangeError(f"there is no folder {path.parent}; make it first")
