"""What a pipeline's models become when adapters are merged into their weights.

The adapters lie on the models meanwhile without acting, so that the models stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.components import injections, models_of
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.sources import AdapterSource
from svfit_diffusion.adapters.strengths import Weight, in_component, strengths
from svfit_diffusion.errors import InterchangeError
from svfit_diffusion.files.adapter import Adapter, refuse_words
from svfit_diffusion.interchange.based import adapter_of, lent
from svfit_diffusion.interchange.export import check_dtype
from svfit_diffusion.interchange.hollow import hollow
from svfit_diffusion.interchange.truncation import Truncation, truncation
from svfit_diffusion.spectrum.shift import pad_sum

Weighted = Mapping[str | Path, Weight] | Sequence[tuple[Adapter | AdapterSource, Weight]]
"""Adapters with their strengths, such as `{"rex": 0.8, "tom": {"unet": 0.5}}` or pairs."""


@dataclass(frozen=True)
class Merge:
    """Adapters about to be merged into a pipeline.

    Attributes:
        models: all models of the pipeline by component, without `torch.compile` wrappers.
        adapters: what is merged.
        weights: strength of each adapter by its name on the models, per component.
        shifts: what their sum is.
        dtype: of floating-point weights; as the models have them if None.
    """

    models: dict[str, nn.Module]
    adapters: list[Adapter]
    weights: dict[str, dict[str, float]]
    shifts: Truncation
    dtype: torch.dtype | None

    def tensors(self, component: str) -> dict[str, Tensor]:
        """A model's state dict as merged, on the CPU.

        Shifts of other adapters, which may be set at the moment, are not in it.
        """
        model = self.models[component]
        tensors = model.state_dict()
        if injection := Injection.find(model):
            weights = self.weights[component]
            for path, shifted in injection.layers.items():
                own = injection.applied.own_weight(path, shifted.layer)
                merged = shifted.merged(own, weights) if shifted.active(weights) else own.detach()
                tensors[f"{path}.weight"] = merged.cpu().to(tensors[f"{path}.weight"].dtype)
        return _cast(tensors, self.dtype)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors on the CPU, floats in a dtype; tied ones, which are saved once, stay tied."""
    made: dict[Any, Tensor] = {}
    return {
        name: made.setdefault(
            (tensor.data_ptr(), tensor.shape),
            tensor.to("cpu", dtype if tensor.is_floating_point() else None),
        )
        for name, tensor in tensors.items()
    }


@contextmanager
def merging(
    pipe: Any, weighted: Weighted, dtype: torch.dtype | None, ignore_base_mismatch: bool
) -> Iterator[Merge]:
    """Read adapters and check them against a pipeline as loading does, to merge them.

    Args:
        pipe: the pipeline.
        weighted: the adapters.
        dtype: of floating-point weights: float16, bfloat16 or float32; None keeps each one's.
        ignore_base_mismatch: merge although an adapter was trained on another base.

    Raises:
        InterchangeError: nothing would be merged, or a model has other weights than those of its
            class: a LoRA's or an IP-Adapter's, fused or quantised ones; or the dtype is another.
        ConfigError: a strength is not a finite number.
        CheckpointError, BaseMismatchError, BasisError, StateError: as loading an adapter.
    """
    if dtype is not None:
        check_dtype(dtype)
    pairs = _pairs(weighted)
    factors = strengths(pairs, [strength for _, strength in pairs])
    adapters = [adapter_of(source) for source, _ in pairs]
    for adapter in adapters:
        refuse_words(adapter, "merge it into weights")
    models, shiftable = _models(pipe), models_of(pipe)
    for component, model in models.items():
        _refuse_foreign_weights(component, model, component in shiftable)
    with ExitStack() as stack:
        names = [
            stack.enter_context(lent(shiftable, adapter, ignore_base_mismatch))
            for adapter in adapters
        ]
        weights = {
            component: {n: in_component(f, component) for n, f in zip(names, factors, strict=True)}
            for component in shiftable
        }
        yield Merge(models, adapters, weights, _sum_of_shifts(shiftable, weights), dtype)


def _pairs(weighted: Weighted) -> list[tuple[Adapter | AdapterSource, Weight]]:
    if isinstance(weighted, str | Path | Adapter):
        raise InterchangeError(
            f"give adapters with their strengths, such as {{'rex': 0.8}} or [(adapter, 0.8)], got "
            f"a single {type(weighted).__name__}"
        )
    pairs: Any = weighted.items() if isinstance(weighted, Mapping) else weighted
    if not pairs:
        raise InterchangeError("no adapters to merge: give pairs of an adapter and its strength")
    return list(pairs)


def _models(pipe: Any) -> dict[str, nn.Module]:
    return {
        component: getattr(part, "_orig_mod", part)
        for component, part in pipe.components.items()
        if isinstance(part, nn.Module)
    }


def _refuse_foreign_weights(component: str, model: Any, is_shiftable: bool) -> None:
    """Raise `InterchangeError` if a model's weights are not what its class would load."""
    tensors = model.state_dict()
    where = f"the {component} of this pipeline"
    if getattr(model, "hf_quantizer", None) is not None:
        raise InterchangeError(f"{where} is quantised; load the base model unquantised")
    if is_shiftable:
        strange = tensors.keys() ^ hollow(model).state_dict().keys()
        if strange:
            raise InterchangeError(
                f"{where} has not the weights that its configuration says, but others such as "
                f"{min(strange)}: unload LoRAs and IP-Adapters, or fuse and then unload them, and "
                f"undo fuse_qkv_projections() first"
            )
    if any(tensor.is_meta for tensor in tensors.values()):
        raise InterchangeError(
            f"{where} is not in memory (sequential or disk offload); load the pipeline without it"
        )
    if any(t.is_floating_point() and t.element_size() == 1 for t in tensors.values()):
        raise InterchangeError(
            f"{where} is stored in float8 (layerwise casting); load the pipeline without it"
        )


def _sum_of_shifts(
    models: Mapping[str, nn.Module], weights: Mapping[str, Mapping[str, float]]
) -> Truncation:
    """The sum of the adapters' shifts, whole; `InterchangeError` if it is none."""
    sums = {
        f"{component}.{path}": pad_sum([(w, delta.detach().cpu()) for w, delta in active])
        for component, injection in injections(models).items()
        for path, shifted in injection.layers.items()
        if (active := shifted.active(weights[component]))
    }
    if not sums:
        raise InterchangeError("nothing to merge: every strength is 0")
    return truncation(sums, None, None)
