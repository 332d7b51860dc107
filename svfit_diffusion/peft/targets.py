"""Which layers PEFT may ask us to shift, and how their weights are read as matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.layers import SHIFTABLE
from svfit_diffusion.adapters.quantised import full_rank_of
from svfit_diffusion.errors import TargetError
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import load_bases
from svfit_diffusion.spectrum.rank import Rank


@dataclass(frozen=True)
class Spectrum:
    """The singular vectors of a layer's weight.

    Attributes:
        basis: of the weight as `(d_out, d_in)`, or `(words, width)` of an Embedding.
        digest: of the weight as it is stored.
        asked: how many triplets were asked for; the basis has fewer where the weight lacks them.
            None stands for all.
    """

    basis: Basis
    digest: str
    asked: int | None = None

    def serves(self, rank: Rank) -> bool:
        """Whether it has what an adapter of that rank needs: of one by energy, all."""
        if self.asked is None:
            return True
        return isinstance(rank, int) and rank <= self.asked


class TransposedLinear(nn.Linear):
    """GPT-2's `Conv1D` as the Linear that it is; it owns no weight."""

    _layer: Any

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.__dict__["_layer"] = layer  # of which it is no parent

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """`(d_out, d_in)`, a view."""
        weight: Tensor = self._layer.weight
        return weight.mT

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        """`(d_out,)`."""
        bias: Tensor = self._layer.bias
        return bias


def spectra(
    model: nn.Module, layers: Mapping[str, Any], ranks: Mapping[str, Rank]
) -> dict[str, Spectrum]:
    """The spectra of some layers by module path, from the cache where it has them.

    Args:
        model: a model, without anything around it.
        layers: the layers, without anything around them.
        ranks: of the adapter, for each of them.

    Raises:
        BasisError: a weight cannot be decomposed: quantised in a way that is not known, sharded,
            not in memory, not finite.
    """
    base = base_weights(model, layers)
    asked = {path: rank if isinstance(rank, int) else None for path, rank in ranks.items()}
    bases = load_bases(base, {path: asked[path] or full_rank_of(layers[path]) for path in layers})
    return {
        path: Spectrum(_turned(bases[path], layer), base.digests[path], asked[path])
        for path, layer in layers.items()
    }


def _turned(basis: Basis, layer: nn.Module) -> Basis:
    if isinstance(layer, Conv1D):  # stored as (d_in, d_out)
        return Basis(basis.v, basis.u, basis.sigma, file=basis.file)
    return basis


def refuse_other_kinds(path: str, layer: nn.Module) -> None:
    """Raise `TargetError` for a layer of a kind that cannot be shifted, or whose shift would not be
    seen.
    """
    # Multi-head attention reads the weight of its output layer and never calls it.
    is_read = isinstance(layer, NonDynamicallyQuantizableLinear)
    if is_read or not isinstance(layer, (*SHIFTABLE, Conv1D, nn.Embedding)):
        kind = "a part of torch's MultiheadAttention" if is_read else f"a {type(layer).__name__}"
        raise TargetError(
            f"target {path!r} is {kind}, which SVFit cannot shift: target Linear, Conv, Embedding "
            f"or GPT-2's Conv1D layers"
        )
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        raise TargetError(
            f"target {path!r} is an Embedding with max_norm, which changes its weight in every "
            f"call: leave it out by exclude_modules"
        )
