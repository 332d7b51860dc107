"""Adapters on a single layer: by the package's own `Injection`, or a live one alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.layers import Shiftable, ShiftedLayer
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.spectrum.basis import Basis


class OneLayer:
    """A model of one layer, and adapters on it.

    Attributes:
        layer: the layer.
        own: its own weight, in place or not.
        basis: of that weight.
    """

    def __init__(self, layer: Shiftable, basis: Basis) -> None:
        self.layer = layer
        self.own = layer.weight
        self.basis = basis
        self.model = nn.Sequential(layer)
        self.injection = Injection.of(self.model)

    def add(self, adapter_name: str, delta: Tensor, *, trainable: bool = False) -> None:
        """Add an adapter with a copy of this shift `(r,)`, inactive."""
        self.injection.add_adapter(
            adapter_name, {"0": delta}, {"0": self.basis}, {"0": ""}, trainable=trainable
        )

    @property
    def shifted(self) -> ShiftedLayer:
        """The layer as the injection sees it."""
        return self.injection.layers["0"]

    @property
    def deltas(self) -> dict[str, nn.Parameter]:
        """The shifts on the layer, by adapter."""
        return self.shifted.deltas

    def activate(self, weights: Mapping[str, float]) -> None:
        """Make these adapters active, or what they have become."""
        self.injection.set_active(weights)

    def refresh(self) -> None:
        """Follow a change of a shift or of `requires_grad`."""
        self.injection.select(self.injection.selection)

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


class LiveLayer:
    """A layer, and a shift of it in training; the layer itself is left alone.

    Attributes:
        layer: the layer.
        shifted: the layer as the projection sees it.
        delta: the shift, a parameter made of `values` `(r,)`.
    """

    def __init__(self, layer: Shiftable, basis: Basis, values: Tensor) -> None:
        self.layer = layer
        self.delta = nn.Parameter(values)
        self.shifted = ShiftedLayer(layer, basis)
        self.shifted.add("a", self.delta)
        self._projection = LiveProjection(self.shifted, {"a": 1.0})

    @property
    def basis(self) -> Basis:
        """The basis in the form that training has brought it to."""
        return self.shifted.basis

    def __call__(self, x: Tensor) -> Tensor:
        return self._projection.forward(x)
