"""Shifts merged into a layer's weight, and taken out of it again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.quantised import quantization_of
from svfit_diffusion.adapters.weights import WeightPlace, commit, exchange_for, give_back
from svfit_diffusion.errors import CheckpointError, StateError
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import shifted_weight


def refuse_quantised(layer: Any) -> None:
    """Raise `StateError` if a layer's weight is quantised: merged, it would be rounded anew."""
    if quantization := quantization_of(layer, layer.weight):
        raise StateError(
            f"a layer is quantised as {quantization}, and adapters cannot be merged into it; leave "
            f"them set as they are, or merge them into the base unquantised"
        )


class Merging:
    """The weight of a layer, with or without a shift merged into it.

    `W'` is a new parameter, so that layers tied to this one stay as they are; the layer's own is
    kept, and put back as the very object. If something else has changed `W'` meanwhile (another
    method's merging), the shift is subtracted instead, and the change stays.

    Args:
        layer: the layer.
        turned: whether its weight is stored transposed.

    Attributes:
        shift: what is merged, `(r,)` float32, or None.
    """

    def __init__(self, layer: nn.Module, turned: bool) -> None:
        self._place = WeightPlace(layer)  # type: ignore[arg-type]
        self._turned = turned
        self.shift: Tensor | None = None

    @torch.no_grad()
    def put(self, basis: Basis, shift: Tensor, *, safely: bool) -> None:
        """Merge a shift into the layer's own weight.

        Args:
            basis: of at least the shift's rank.
            shift: `(r,)`.
            safely: raise if `W'` is not finite.

        Raises:
            CheckpointError: it is not; the layer is untouched.
        """
        assert self.shift is None
        merged = self._moved(self._place.current, basis, shift)
        if safely and not torch.isfinite(merged).all():
            raise CheckpointError("NaNs detected in the merged weights")
        commit([exchange_for(self._place, merged)], ())
        self.shift = shift.detach().clone()

    @torch.no_grad()
    def undo(self, basis: Basis) -> None:
        """Put the layer's own weight back.

        Args:
            basis: of at least the rank of what is merged.
        """
        assert self.shift is not None
        place = self._place
        if place.is_untouched:
            own = give_back(place, for_good=True)
            assert own is not None
            commit([own], ())
        else:
            commit([exchange_for(place, self._moved(place.current, basis, -self.shift))], ())
            place.original = None
        self.shift = None

    def _moved(self, stored: Tensor, basis: Basis, shift: Tensor) -> Tensor:
        weight = stored.detach()
        device = weight.device
        if self._turned:
            return shifted_weight(weight.mT, basis.to(device), shift.to(device)).mT
        return shifted_weight(weight, basis.to(device), shift.to(device))
