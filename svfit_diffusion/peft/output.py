"""What a layer under PEFT gives out by a shift of its weight's singular values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers.pytorch_utils import Conv1D

from svfit_diffusion.adapters.added import refuse_lost_gradients
from svfit_diffusion.adapters.layers import SHIFTABLE, ShiftedLayer
from svfit_diffusion.adapters.live import ShiftedProjection
from svfit_diffusion.adapters.quantised import quantization_of, weight_shape
from svfit_diffusion.peft.targets import TransposedLinear
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import factored_shift, shift_matrix

_PLAIN = (*SHIFTABLE, Conv1D)


class ShiftedOutput:
    """A layer's output by any shift.

    Where the layer is no more than its frozen weight, one product does all, factored or merged
    (`ShiftedProjection`). Else the layer, with what others have put in it, or by the kernel of its
    quantised weight, runs as it is, and the change is added.

    Args:
        layer: the layer itself.
        basis: of its weight, as much as is in use.
        is_alone: whether nothing of PEFT's is around the layer.

    Attributes:
        is_turned: whether the layer stores its weight transposed.
        quantization: how its weight is quantised, as `quantization_of` says it.
    """

    def __init__(self, layer: Any, basis: Basis, *, is_alone: bool) -> None:
        self.is_turned = isinstance(layer, Conv1D)
        self.quantization = quantization_of(layer, layer.weight)
        self._can_project = is_alone and type(layer) in _PLAIN and not self.quantization
        view = TransposedLinear(layer) if self.is_turned else layer
        self._shape = view.weight.shape if self.is_turned else weight_shape(layer)
        self._shifted = ShiftedLayer(view, basis)
        self._projection: ShiftedProjection | None = None
        self._rank = 0  # that is in use

    @property
    def basis(self) -> Basis:
        """As much of the layer's as is in use."""
        return self._shifted.basis

    def keep(self, basis: Basis) -> None:
        """Hold at least the triplets of this basis."""
        if basis.rank <= self._rank:
            return
        self._rank, self._shifted.basis = basis.rank, basis
        if self._can_project:
            # Now, and not when it is first called, which may be in a compiled graph.
            self._projection = ShiftedProjection(self._shifted)

    def of(
        self, base_layer: nn.Module, x: Tensor, shift: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The output.

        Args:
            base_layer: the layer, or what another method of PEFT's has put around it.
            x: its input.
            shift: `(r,)` float32, or None for the layer as it is.
            *args: for the layer, as are keywords.
            **kwargs: for the layer.

        Raises:
            StateError: the kernel of a quantised weight gives its inputs no gradient.
        """
        if shift is not None:
            shift = shift.to(x.device)
            if self._projection and _is_plain(base_layer) and not args and not kwargs:
                return self._projection.forward(x, shift)
        y: Tensor = base_layer(x, *args, **kwargs)
        if shift is None:
            return y
        if self.quantization:
            refuse_lost_gradients(y, x, self.quantization)
        return y + self._change(x, shift).to(y.dtype)

    def change_of_weight(self, shift: Tensor) -> Tensor:
        """What a shift `(r,)` adds to the weight, as the layer stores it, float32."""
        change = self._matrix(shift)
        return change.mT if self.is_turned else change

    def _matrix(self, shift: Tensor) -> Tensor:
        change = shift_matrix(self.basis.to(shift.device), shift)
        return change.reshape(self._shape)

    def _change(self, x: Tensor, shift: Tensor) -> Tensor:
        """What a shift adds to the output."""
        shifted = self._shifted
        shifted.basis = shifted.basis.to(x.device)
        if not shifted.factorises:
            return shifted.project(x, self._matrix(shift).to(x.dtype), None)
        return factored_shift(shifted.project, x, shifted.basis, shift, self._shape[1:])


class ShiftedWords(ShiftedOutput):
    """An Embedding's output by any shift: `E[x] + (U[x] ⊙ δ) Vᵀ`."""

    def _change(self, x: Tensor, shift: Tensor) -> Tensor:
        self._shifted.basis = self._shifted.basis.to(x.device)
        basis = self.basis.truncated(len(shift))
        change = (embedding(x, basis.u.mT).float() * shift) @ basis.v.float()
        scale = getattr(self._shifted.layer, "embed_scale", None)  # as Gemma's embeddings have it
        return change if scale is None else change * scale


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its frozen weight and bias."""
    return (
        type(layer) in _PLAIN
        and "forward" not in layer.__dict__  # as offloading leaves it
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not any(parameter.requires_grad for parameter in layer.parameters())
    )
