"""Layers that compute by themselves, and to whose outputs the shift's part is added.

A quantised weight can neither be exchanged for another nor multiplied by anything but its own
kernel. So `y = W x + U (δ ⊙ Vᵀx)`: the layer's own output, whatever computes it, and the second
term in the precision of the inputs. It gives shifts their gradients in training, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.layers import ShiftedLayer
from svfit_diffusion.adapters.live import ActiveShift
from svfit_diffusion.adapters.mixing import RowProjection
from svfit_diffusion.adapters.patches import refuse_fused
from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.errors import StateError
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import factored_shift, shift_matrix

ShiftOfRows = Callable[[int, torch.device], Tensor]
"""The shift for a batch of so many rows: `(r,)` float32, or `(parts, r)` of equal parts of it."""


def refuse_lost_gradients(output: Tensor, x: Tensor, quantization: str) -> None:
    """Raise `StateError` if a quantised layer's kernel gives its inputs no gradient, though shifts
    are trained in layers before this one.

    Args:
        output: the layer's own.
        x: its input.
        quantization: how its weight is quantised.
    """
    if torch.is_grad_enabled() and x.requires_grad and not output.requires_grad:
        raise StateError(
            f"the kernel of a layer quantised as {quantization} gives no gradients, so adapters "
            f"cannot be trained through it; use another quantisation"
        )


class AddedProjection:
    """Adds `U (δ ⊙ Vᵀx)` to what one layer gives for `x`.

    Args:
        shifted: the layer.
        shift: of its rows.

    Attributes:
        paused: whether the layer gives its own output alone for a while.
    """

    def __init__(self, shifted: ShiftedLayer, shift: ShiftOfRows) -> None:
        self._shifted = shifted
        self._shift = shift
        self._basis: Basis | None = None
        self.paused = False

    def added_to(self, output: Tensor, x: Tensor) -> Tensor:
        """The layer's output with the shift's part.

        Args:
            output: the layer's own, `(…, d_out)`, or `(rows, channels, *size)`.
            x: its input, `(…, d_in)`, or `(rows, channels, *size)`.

        Raises:
            StateError: shifts are trained in layers before this one, and its kernel gives its
                inputs no gradient.
        """
        if self.paused:
            return output
        refuse_lost_gradients(output, x, self._shifted.quantization)
        return output + self._change(x).to(output.dtype)

    def _change(self, x: Tensor) -> Tensor:
        shifted, layer = self._shifted, self._shifted.layer
        delta, basis = self._shift(len(x), x.device), self._placed_basis(x)
        if not shifted.factorises:
            return self._dense_change(x, delta, basis)
        kernel = torch.Size((basis.v.shape[1],))
        if not isinstance(layer, nn.Linear):
            kernel = layer.weight.shape[1:]
        if delta.dim() == 2:
            delta = delta.repeat_interleave(len(x) // len(delta), 0)
            if isinstance(layer, nn.Linear):
                delta = delta.view(len(x), *[1] * (x.dim() - 2), -1)
        return factored_shift(shifted.project, x, basis, delta, kernel)

    def _dense_change(self, x: Tensor, delta: Tensor, basis: Basis) -> Tensor:
        """Of a grouped convolution, whose basis spans the groups."""
        layer = self._shifted.layer
        parts = x.chunk(len(delta)) if delta.dim() == 2 else (x,)
        changes = [
            self._shifted.project(
                part, shift_matrix(basis, own).to(x.dtype).reshape(layer.weight.shape), None
            )
            for part, own in zip(parts, delta.view(len(parts), -1), strict=True)
        ]
        return torch.cat(changes)

    @torch.inference_mode(False)
    def _placed_basis(self, x: Tensor) -> Basis:
        """The basis beside the inputs, in the precision in which they are multiplied."""
        device, dtype = x.device, x.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        basis = self._basis
        if basis is None or (basis.u.device, basis.u.dtype) != (device, dtype):
            basis = self._basis = self._shifted.basis.to(device, dtype)
        return basis


class AddedShifts:
    """The `AddedProjection`s of one model's layers.

    Each acts as a forward hook, so that it stays where hooks that replace a layer's `forward`
    (offloading, casting) come and go.

    Args:
        model: the model.
        layers: its shifted layers by module path; followed as it changes.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, ShiftedLayer]) -> None:
        self._model = model
        self._layers = layers
        self._slots: dict[str, _Slot] = {}

    @property
    def acting(self) -> list[AddedProjection]:
        """Those that act."""
        return [slot.projection for slot in self._slots.values() if slot.projection]

    def of_weights(
        self, weights: Mapping[str, float], owners: RowOwners | None, *, fused: bool = False
    ) -> dict[str, AddedProjection]:
        """What lets these adapters act on quantised layers, in training or not, by module path.

        Args:
            weights: of adapters, by name.
            owners: whose rows are whose, if each is to act on rows of its own.
            fused: whether they are to be held by the weights.

        Raises:
            StateError: the weights cannot hold them, or the model runs layers fused with others.
        """
        shifts = {
            path: ActiveShift(shifted, weights, owners)
            for path, shifted in self._layers.items()
            if shifted.quantization and shifted.active(weights)
        }
        if fused and shifts:
            path = next(iter(shifts))
            raise StateError(
                f"{path} is quantised as {self._layers[path].quantization}, and adapters cannot be "
                f"fused into it; leave them set as they are, or merge them into the base "
                f"unquantised (svfit merge)"
            )
        return self._of_shifts(shifts)

    def of_rows(self, rows: Mapping[str, RowProjection]) -> dict[str, AddedProjection]:
        """What lets each row be shifted by adapters of its own, on quantised layers among these.

        Raises:
            StateError: the model runs layers fused with others.
        """
        return self._of_shifts(
            {path: own.shift for path, own in rows.items() if self._layers[path].quantization}
        )

    def _of_shifts(self, shifts: Mapping[str, ShiftOfRows]) -> dict[str, AddedProjection]:
        refuse_fused(self._model, shifts)
        return {path: AddedProjection(self._layers[path], own) for path, own in shifts.items()}

    def put(self, projections: Mapping[str, AddedProjection]) -> None:
        """Let exactly these act, by module path."""
        for path, slot in self._slots.items():
            slot.projection = projections.get(path)
        for path, projection in projections.items():
            if path not in self._slots:
                self._slots[path] = _Slot(self._layers[path].layer, projection)

    def forget(self, paths: Collection[str]) -> None:
        """Leave nothing on these layers."""
        for path in paths:
            if path in self._slots:
                self._slots.pop(path).close()


class _Slot:
    """The place on a layer where a projection acts, or none for a while."""

    def __init__(self, layer: nn.Module, projection: AddedProjection) -> None:
        self.projection: AddedProjection | None = projection
        self._layer = layer
        self._hook = layer.register_forward_hook(self.see, with_kwargs=True)
        # A compiled graph does not notice hooks that come later, but a `forward` in the layer.
        self._before = layer.__dict__.get("forward")
        self._same: Callable[..., Any] = functools.partial(layer.forward)
        layer.__dict__["forward"] = self._same

    def see(
        self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """The layer's forward hook."""
        if self.projection is None:
            return output
        return self.projection.added_to(output, args[0] if args else next(iter(kwargs.values())))

    def close(self) -> None:
        """Take the hook off."""
        self.projection = None
        self._hook.remove()
        if self._layer.__dict__.get("forward") is not self._same:
            return  # something lies over it that calls it, which calls the layer's own
        if self._before is None:
            del self._layer.__dict__["forward"]
        else:
            self._layer.__dict__["forward"] = self._before
