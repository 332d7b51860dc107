"""The layers that a training would shift, told from models that need not have their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.targets import select_targets
from svfit_diffusion.families import Family
from svfit_diffusion.spectrum.basis import matrix_shape
from svfit_diffusion.spectrum.rank import check_rank_fits
from svfit_diffusion.training.budget import check_budget
from svfit_diffusion.training.config import TrainingConfig


@dataclass(frozen=True)
class PlannedLayer:
    """A layer to be trained.

    Attributes:
        d_out: outputs.
        d_in: inputs, with the kernel flattened in.
        rank: trained singular values.
    """

    d_out: int
    d_in: int
    rank: int

    @property
    def full_rank(self) -> int:
        """Number of singular values, none of them zero."""
        return min(self.d_out, self.d_in)

    def lora_values(self, rank: int) -> int:
        """Numbers that a LoRA of this rank trains here."""
        return rank * (self.d_out + self.d_in)


_WIDE = 2048
"""Singular values of a weight up to which all are trained if nothing is said."""
_LEADING = 128
"""How many of each are trained where a weight has more."""

PlannedLayers = dict[str, dict[str, PlannedLayer]]
"""Layers by module path, per component."""


def planned_layers(models: dict[str, nn.Module], config: SVFitConfig) -> PlannedLayers:
    """The layers of some models that training would shift.

    A rank that is a share of the energy is taken for all singular values: how many it means, the
    weights alone tell.

    Raises:
        TargetError: a target matches nothing.
        ConfigError: the rank exceeds a weight's number of singular values.
    """
    return {component: _layers(model, config) for component, model in models.items()}


def models_to_train(family: Family, trained_encoders: Sequence[str]) -> dict[str, nn.Module]:
    """The models of a family's pipeline that training would shift, by component."""
    return {name: getattr(family.pipe, name) for name in (family.denoiser, *trained_encoders)}


def rank_to_train(rank: str | None, models: Mapping[str, nn.Module], target: Sequence[str]) -> str:
    """The rank of a training, as users write it; if none is said, all of a base's singular values.

    Where a weight is very wide it is `_LEADING` of each, or as many as the narrowest has: all of
    them would take an hour to find.

    Args:
        rank: as said, if it is.
        models: to be shifted, by component.
        target: as `SVFitConfig`'s.

    Raises:
        TargetError: a target matches nothing.
    """
    if rank is not None:
        return rank
    layers = [select_targets(model, tuple(target)).values() for model in models.values()]
    sides = [min(_sides(layer)) for own in layers for layer in own]
    return "1.0" if max(sides) <= _WIDE else str(min(_LEADING, *sides))


def layers_to_train(
    family: Family, trained_encoders: Sequence[str], config: TrainingConfig
) -> PlannedLayers:
    """The layers that a training of a family's pipeline would shift.

    Raises:
        TargetError, ConfigError: as `planned_layers`, or the budget exceeds all values.
    """
    models = models_to_train(family, trained_encoders)
    rank = rank_to_train(config.rank, models, config.target)
    layers = planned_layers(models, config.svfit_of(rank))
    if config.budget:
        check_budget(config.budget, value_count(layers))
    return layers


def value_count(layers: PlannedLayers) -> int:
    """Trained values in all layers."""
    return sum(layer.rank for own in layers.values() for layer in own.values())


def _sides(layer: Shiftable) -> tuple[int, int]:
    """`(out, in·∏kernel)` of a layer, whose weight may be packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return matrix_shape(layer.weight.shape)


def _layers(model: nn.Module, config: SVFitConfig) -> dict[str, PlannedLayer]:
    planned = {}
    for path, layer in select_targets(model, config.target).items():
        d_out, d_in = _sides(layer)
        full = min(d_out, d_in)
        if isinstance(config.rank, int):
            check_rank_fits(config.rank, full, path)
        planned[path] = PlannedLayer(
            d_out, d_in, config.rank if isinstance(config.rank, int) else full
        )
    return planned
