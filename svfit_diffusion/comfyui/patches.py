"""An adapter as weight patches of ComfyUI: `ΔW = U diag(δ) Vᵀ`, dense, of each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.adapters.verification import check_base, check_sketches, with_vectors
from svfit_diffusion.comfyui.host import compute_device, make_room, progress
from svfit_diffusion.comfyui.places import Place, Places
from svfit_diffusion.comfyui.weights import HostWeights
from svfit_diffusion.errors import CheckpointError, listed
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.spectrum.basis import Basis, full_rank, matrix_shape, unpacked
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases, read_base
from svfit_diffusion.spectrum.shift import shift_matrix

Patches = dict[Any, tuple[str, tuple[Tensor]]]
"""What `add_patches` takes: by key, or by key and slice, the kind of a patch and its tensor."""

_WAY_OUT = "switch on ignore_base_mismatch"


@torch.inference_mode(False)
@torch.no_grad()
def make_patches(
    adapter: Adapter, weights: HostWeights, places: Places, ignore_base_mismatch: bool
) -> Patches:
    """The patches of an adapter for the MODEL or the CLIP that these weights are of.

    Args:
        adapter: of components that are all in that MODEL or CLIP.
        weights: of the base, unquantised.
        places: of its layers.
        ignore_base_mismatch: make them although the adapter was trained on another base.

    Raises:
        CheckpointError: a layer has no place there, or fewer singular values than the adapter.
        BaseMismatchError: it was trained on other weights, or with other singular vectors.
        BasisError: a weight cannot be decomposed.
        CacheError: the disk has no room for what must be computed.
    """
    parts = [_part(adapter, component, weights, places) for component in adapter.deltas]
    known = adapter.metadata.fingerprints
    if not ignore_base_mismatch:
        for part in parts:
            check_base(part.component, part.base.fingerprint(), adapter.metadata, _WAY_OUT)
    device = compute_device()
    make_room(_room_for(parts), device)
    step = progress(2 * sum(len(part.places) for part in parts))
    patches: Patches = {}
    for part in parts:
        ranks = {path: delta.numel() for path, delta in part.deltas.items()}
        bases = _bases(part.base, ranks, device, step)
        deltas = with_vectors(part.component, part.deltas, bases)
        if part.base.fingerprint() == known.get(part.component):
            check_sketches(part.component, deltas, part.sketches, bases)
        for path, delta in deltas.items():
            if delta.any():
                change = _change(unpacked(part.base.weights[path]), bases[path], delta, device)
                place = part.places[path]
                patches[place.target] = ("diff", (place.turn(change),))
            step()
    return patches


@dataclass(frozen=True)
class _Part:
    """What an adapter does to one component of a pipeline, by the paths of its file.

    Attributes:
        component: its name.
        places: of the layers.
        deltas: their shifts.
        sketches: of the shifts, where the file has them.
        base: weights of the layers as diffusers has them.
    """

    component: str
    places: dict[str, Place]
    deltas: dict[str, Tensor]
    sketches: dict[str, Tensor]
    base: BaseWeights


def _part(adapter: Adapter, component: str, weights: HostWeights, places: Places) -> _Part:
    deltas = adapter.deltas[component]
    found: dict[str, Place] = {}
    taken: dict[str, Tensor] = {}
    seen: set[Place] = set()
    problems = []
    for path, delta in deltas.items():
        place = places(component, path)
        if place is None:
            problems.append(f"{component}.{path} has no weight here")
        elif place in seen:
            problems.append(f"{component}.{path} is given twice, with and without 'text_model.'")
        else:
            found[path] = place
            seen.add(place)
            taken[path] = place.take(weights.read(place.key))
            if delta.numel() > (full := full_rank(taken[path])):
                problems.append(f"{component}.{path}: {delta.numel()} values, the layer has {full}")
    if problems:
        raise CheckpointError(listed("the adapter does not fit what is connected", problems))
    return _Part(component, found, deltas, adapter.sketches.get(component, {}), read_base(taken))


def _room_for(parts: list[_Part]) -> int:
    """Bytes that the largest decomposition takes: it works in float64 on a few copies."""
    shapes = [matrix_shape(w.shape) for part in parts for w in part.base.weights.values()]
    return max(8 * (4 * d_out * d_in + 6 * min(d_out, d_in) ** 2) for d_out, d_in in shapes)


def _bases(
    base: BaseWeights, ranks: Mapping[str, int], device: torch.device, step: Callable[[], None]
) -> dict[str, Basis]:
    """The bases of some layers, computed on `device` if they are not in the cache."""
    bases: dict[str, Basis] = {}
    # A GPU works on one at a time, a CPU on as many as it has threads.
    count = 1 if device.type != "cpu" else torch.get_num_threads()
    paths = list(base.weights)
    for begin in range(0, len(paths), count):
        here = {
            path: unpacked(base.weights[path]).to(device) for path in paths[begin : begin + count]
        }
        found = load_bases(BaseWeights(here, base.digests), ranks, show_progress=False)
        for path, basis in found.items():
            bases[path] = basis.to(torch.device("cpu"))
            step()
    return bases


def _change(weight: Tensor, basis: Basis, delta: Tensor, device: torch.device) -> Tensor:
    """`ΔW` in the shape of a weight, on the CPU, in float16 unless the weight is more exact."""
    change = shift_matrix(basis.to(device), delta.to(device)).reshape(weight.shape)
    basis.release()
    dtype = torch.float32 if weight.dtype == torch.float32 else torch.float16
    return change.to("cpu", dtype)
