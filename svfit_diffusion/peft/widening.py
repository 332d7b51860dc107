"""More singular vectors for layers that adapters of lower ranks shift already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svfit_diffusion.errors import StateError
from svfit_diffusion.peft.layer import SVFitLayer
from svfit_diffusion.peft.targets import spectra
from svfit_diffusion.spectrum.rank import Rank


def widen(model: Any, layers: Mapping[str, SVFitLayer], ranks: Mapping[str, Rank]) -> None:
    """Give layers the singular vectors that an adapter of these ranks needs; most have them.

    Args:
        model: a model, without anything around it.
        layers: those of its layers that adapters shift, by path.
        ranks: of the adapter, for some of them.

    Raises:
        StateError: a weight is not the base's, as adapters are merged into it.
        BasisError: a weight cannot be decomposed.
    """
    lacking = {
        path: layers[path] for path, rank in ranks.items() if not layers[path].spectrum.serves(rank)
    }
    if not lacking:
        return
    inner = {path: layer.get_base_layer() for path, layer in lacking.items()}
    found = spectra(model, inner, {path: ranks[path] for path in lacking})
    for path, layer in lacking.items():
        if found[path].digest != layer.spectrum.digest:
            raise StateError(
                f"{path} lacks singular vectors for an adapter of rank {ranks[path]}, and its "
                f"weight is not the base's now: unmerge adapters first"
            )
    for path, layer in lacking.items():
        layer.spectrum = found[path]
