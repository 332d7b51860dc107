"""The layers that a training would shift, told from models that need not have their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from svfit_diffusion.adapters.config import SVFitConfig
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


def layers_to_train(
    family: Family, trained_encoders: Sequence[str], config: TrainingConfig
) -> PlannedLayers:
    """The layers that a training of a family's pipeline would shift.

    Raises:
        TargetError, ConfigError: as `planned_layers`, or the budget exceeds all values.
    """
    components = [family.denoiser, *trained_encoders]
    layers = planned_layers({name: getattr(family.pipe, name) for name in components}, config.svfit)
    if config.budget:
        check_budget(config.budget, value_count(layers))
    return layers


def value_count(layers: PlannedLayers) -> int:
    """Trained values in all layers."""
    return sum(layer.rank for own in layers.values() for layer in own.values())


def _layers(model: nn.Module, config: SVFitConfig) -> dict[str, PlannedLayer]:
    planned = {}
    for path, layer in select_targets(model, config.target).items():
        d_out, d_in = matrix_shape(layer.weight.shape)
        full = min(d_out, d_in)
        if isinstance(config.rank, int):
            check_rank_fits(config.rank, full, path)
        planned[path] = PlannedLayer(
            d_out, d_in, config.rank if isinstance(config.rank, int) else full
        )
    return planned
