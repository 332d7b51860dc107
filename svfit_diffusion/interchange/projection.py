"""Adapters from changes that others made: a LoRA, or a fine-tuned model.

The nearest change that singular values can say is `δᵢ = uᵢᵀ ΔW vᵢ`, as the `uᵢ vᵢᵀ` are
orthonormal; what it says of `ΔW` is `‖δ‖ / ‖ΔW‖`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.components import Models, models_of
from svfit_diffusion.adapters.quantised import quantizations_in, spelled
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.errors import InterchangeError, clipped
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions
from svfit_diffusion.interchange.factors import Factors
from svfit_diffusion.interchange.reading import read_lora
from svfit_diffusion.spectrum.basis import Basis, as_matrix, unpacked
from svfit_diffusion.spectrum.cache import load_bases
from svfit_diffusion.spectrum.sketch import sketch


@dataclass(frozen=True)
class Import:
    """An adapter made of another change.

    Attributes:
        adapter: the adapter.
        share: how much of the change's norm it says, over all layers together, in [0, 1].
        shares: the same of each layer, by `<component>.<module path>`.
        left_out: what changed too, but is no weight that singular values shift.
    """

    adapter: Adapter
    share: float
    shares: dict[str, float]
    left_out: tuple[str, ...] = ()


@torch.no_grad()
def import_lora(pipe: Any, lora: str | Path | Mapping[str, Tensor]) -> Import:
    """Make an adapter of what singular values can say of a LoRA.

    Args:
        pipe: a pipeline of the base model; it stays as it is.
        lora: a file of any form that diffusers reads for this pipeline, or its tensors.

    Raises:
        InterchangeError: there is no such file; diffusers does not read it for this pipeline; it
            is a DoRA, of which diffusers reads a part; or it changes nothing.
        BasisError, StateError: a weight of the base cannot be decomposed.
    """
    if not isinstance(lora, Mapping):
        lora = Path(lora)
        if not lora.is_file():
            raise InterchangeError(f"no LoRA file at {lora}")
    _refuse_dora(lora)
    changes = {name: change for name, change in read_lora(pipe, lora).items() if change.norm}
    said = {}
    for component, model in models_of(pipe).items():
        own = {n.partition(".")[2]: c for n, c in changes.items() if n.startswith(f"{component}.")}
        said[component] = _said(model, own)
    return _import(pipe, said, ())


def _refuse_dora(lora: Path | Mapping[str, Tensor]) -> None:
    """Raise `InterchangeError` if magnitudes belong to a LoRA."""
    if isinstance(lora, Mapping):
        names = list(lora)
    else:
        try:
            with safe_open(lora, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise InterchangeError(
                f"{lora}: no readable safetensors file ({clipped(error)})"
            ) from error
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in names):
        raise InterchangeError(
            "this is a DoRA, whose change is not low-rank; apply it to a copy of the base, and "
            "make an adapter of the two models with import_difference"
        )


@torch.no_grad()
def import_difference(pipe: Any, tuned: Any) -> Import:
    """Make an adapter of what singular values can say of the way from a base to a fine-tuned model.

    Args:
        pipe: a pipeline of the base model.
        tuned: a pipeline of models of the same classes and shapes.

    Raises:
        InterchangeError: the models are not alike, or not different.
        BasisError, StateError: a weight cannot be decomposed.
    """
    models, others = models_of(pipe), models_of(tuned)
    _refuse_unlike(models, others)
    said, left_out = {}, []
    for component, model in models.items():
        layers, tuned_layers = shiftable_layers(model), shiftable_layers(others[component])
        own = base_weights(model, layers).weights
        new = base_weights(others[component], tuned_layers).weights
        pairs = ((path, unpacked(own[path]), unpacked(new[path])) for path in own)
        changes = {
            path: as_matrix(changed.detach().cpu().float() - weight.detach().cpu().float())
            for path, weight, changed in pairs
            if not _equal(weight, changed)
        }
        said[component] = _said(model, changes)
        shifted = {f"{path}.weight" for path in layers}
        values = dict(others[component].named_parameters())
        left_out += [
            f"{component}.{name}"
            for name, value in model.named_parameters()
            if name not in shifted and not _equal(value, values[name])
        ]
    return _import(pipe, said, tuple(left_out))


@dataclass(frozen=True)
class _Said:
    """What singular values say of the change of one component, by module path.

    Attributes:
        deltas: shifts, of layers that have singular values above zero.
        sketches: of them.
        fingerprint: of the weights of these layers.
        quantization: of them.
        norms: of the whole changes.
    """

    deltas: dict[str, Tensor]
    sketches: dict[str, Tensor]
    fingerprint: str
    quantization: str
    norms: dict[str, float]


def _said(model: nn.Module, changes: Mapping[str, Factors | Tensor]) -> _Said:
    """Every triplet is asked for, of large weights too: a change that others made lies where it
    lies, as much along the last vectors as along the first, and its share is to be all of it.
    """
    layers = shiftable_layers(model)
    base = base_weights(model, {path: layers[path] for path in changes})
    bases = load_bases(base)
    deltas = {path: _projected(bases[path], change) for path, change in changes.items()}
    deltas = {path: delta for path, delta in deltas.items() if delta.numel()}
    sketches = {path: sketch(bases[path], delta) for path, delta in deltas.items()}
    norms = {path: _norm(change) for path, change in changes.items()}
    prints, quantization = base.fingerprint(deltas), spelled(quantizations_in(base))
    return _Said(deltas, sketches, prints, quantization, norms)


def _projected(basis: Basis, change: Factors | Tensor) -> Tensor:
    """`δᵢ = uᵢᵀ ΔW vᵢ`, `(r,)` float32 on the CPU."""
    u, v = basis.u.cpu().float(), basis.v.cpu().float()
    if isinstance(change, Factors):
        return ((u @ change.up) * (v @ change.down.mT)).sum(1)
    return ((u @ change) * v).sum(1)


def _norm(change: Factors | Tensor) -> float:
    return change.norm if isinstance(change, Factors) else float(change.norm())


def _import(pipe: Any, said: Mapping[str, _Said], left_out: tuple[str, ...]) -> Import:
    norms = {f"{c}.{path}": norm for c, part in said.items() for path, norm in part.norms.items()}
    whole = sum(norm**2 for norm in norms.values())
    said = {component: part for component, part in said.items() if part.deltas}
    if not said:
        raise InterchangeError("nothing is changed that singular values could shift")
    metadata = AdapterMetadata(
        base_model=getattr(pipe, "name_or_path", "") or "",
        fingerprints={component: part.fingerprint for component, part in said.items()},
        quantization={c: part.quantization for c, part in said.items() if part.quantization},
        versions=package_versions(),
    )
    deltas = {component: part.deltas for component, part in said.items()}
    sketches = {component: part.sketches for component, part in said.items()}
    lengths = {f"{c}.{p}": float(d.norm()) for c, own in deltas.items() for p, d in own.items()}
    shares = {name: lengths.get(name, 0.0) / norm for name, norm in norms.items()}
    share = (sum(length**2 for length in lengths.values()) / whole) ** 0.5
    return Import(Adapter(deltas, metadata, sketches), share, shares, left_out)


def _refuse_unlike(models: Models, others: Models) -> None:
    if models.keys() != others.keys():
        raise InterchangeError(
            f"the pipelines have other models: {', '.join(models)} and {', '.join(others)}"
        )
    for component, model in models.items():
        one, other = (
            {name: tuple(p.shape) for name, p in m.named_parameters()}
            for m in (model, others[component])
        )
        if one != other:
            name = next(n for n in (*one, *other) if one.get(n) != other.get(n))
            raise InterchangeError(
                f"the {component} is another: {name} is {one.get(name, 'missing')} here and "
                f"{other.get(name, 'missing')} there; compare models of one architecture"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.cpu(), other.to(one.dtype).cpu())
