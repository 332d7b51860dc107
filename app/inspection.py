"""What there is to know of an adapter, and what singular values carry: facts and arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from svfit_diffusion.adapters import components
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.matching import match_layers
from svfit_diffusion.adapters.targets import shiftable_layers
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import Basis, energy_of, full_rank
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases
from svfit_diffusion.spectrum.leading import is_partial
from svfit_diffusion.spectrum.shift import shift_matrix

from .library import AdapterInfo
from .public_names import public_name
from .settings import SAMPLES

_IMAGE_SIDE = 320  # pixels; decomposing a larger picture takes longer and shows no more


@dataclass(frozen=True)
class LayerShift:
    """One layer that an adapter shifts.

    Attributes:
        component: of the pipeline, such as `"unet"`.
        path: module path.
        sigma: σ⁰, the leading singular values of the base's weight, `(m,)`, descending.
        delta: shift of the first of them, `(r,)`, r ≤ m.
        count: how many the weight has, k ≥ m.
        energy: `Σ σᵢ²` over all k.
    """

    component: str
    path: str
    sigma: np.ndarray
    delta: np.ndarray
    count: int
    energy: float

    @property
    def name(self) -> str:
        """Component and path."""
        return f"{self.component}.{self.path}"

    @property
    def moved(self) -> float:
        """`‖δ‖ / ‖σ⁰‖` over the leading r singular values."""
        return float(np.linalg.norm(self.delta) / np.linalg.norm(self.sigma[: self.delta.size]))

    @property
    def cumulative_energy(self) -> np.ndarray:
        """`Σ_{i≤r} σᵢ² / Σ σᵢ²` for r = 1 … m, the whole over all k."""
        return np.cumsum(self.sigma.astype(np.float64) ** 2) / self.energy


def in_a_sentence(info: AdapterInfo) -> str:
    """What an adapter is, for someone who has never seen one."""
    if info.misfit is not None:
        return f"“{info.name}” does not go with this base model. {info.misfit}"
    prompt = info.adapter.metadata.instance_prompt
    taught = f"knows what to draw for “{prompt}”" if prompt else "knows a subject"
    layers = sum(len(deltas) for deltas in info.adapter.deltas.values())
    words = " and ".join(f"“{word.identifier}”" for word in info.adapter.words.values())
    beside = f", and what {words} adds where a prompt says it" if words else ""
    return (
        f"With “{info.name}” the base model {taught}: {info.adapter.parameter_count:,} numbers in "
        f"{info.file_bytes / 1024:.0f} KiB say how much more or less {layers} of its layers "
        f"stretch what they are given{beside}; nothing else is changed."
    )


def facts(info: AdapterInfo) -> list[tuple[str, str]]:
    """What an adapter's file says, as labels and values to read; unknown ones are left out."""
    adapter, metadata = info.adapter, info.adapter.metadata
    entries = [
        ("File size", f"{info.file_bytes / 1024:.1f} KiB"),
        ("Values shifted", f"{adapter.parameter_count:,}"),
        ("Layers shifted", _per_component({c: str(len(d)) for c, d in adapter.deltas.items()})),
        ("Word of its own", _per_component({c: w.identifier for c, w in adapter.words.items()})),
        ("Base model match", base_match(info)),
        ("Base model", public_name(metadata.base_model)),
        ("Instance prompt", metadata.instance_prompt),
        ("Class prompt", metadata.class_prompt),
        ("Rank", _per_component(metadata.rank)),
        ("Target", _per_component(metadata.target)),
        *_training_facts(metadata.training),
        ("Written by", ", ".join(f"{name} {v}" for name, v in metadata.versions.items())),
    ]
    return [(label, value) for label, value in entries if value]


def base_match(info: AdapterInfo) -> str:
    """One sentence on whether the adapter belongs to the base model at hand."""
    if info.misfit is not None:
        return f"Does not match: {info.misfit}"
    if not info.adapter.metadata.fingerprints:
        return "Fits, but the file does not say which weights it was trained on."
    digests = {c: digest[:12] for c, digest in info.adapter.metadata.fingerprints.items()}
    return f"Matches this one, weight for weight ({_per_component(digests)})."


def layer_shifts(pipe: Any, adapter: Adapter) -> list[LayerShift]:
    """Every layer that an adapter shifts, beside the base's singular values, in the file's order.

    Of weights so large that their leading singular values are found much faster than all, there
    are those that the adapter shifts; of others all.

    Args:
        pipe: the base pipeline; only read.
        adapter: what to look at; it fits the base (`AdapterInfo.misfit`).
    """
    models = components.models_of(pipe)
    shifts = []
    for component, deltas in adapter.deltas.items():
        layers = shiftable_layers(models[component])
        matched = match_layers(deltas, layers, component)
        base = base_weights(models[component], {path: layers[path] for path in matched.values()})
        ranks = {matched[name]: _rank(base, matched[name], d) for name, d in deltas.items()}
        bases = load_bases(base, ranks, show_progress=False)
        shifts += [
            _layer_shift(component, matched[name], bases[matched[name]], base, delta)
            for name, delta in deltas.items()
        ]
    return shifts


def _rank(base: BaseWeights, path: str, delta: Tensor) -> int:
    """How many singular values of a weight to look at beside a shift."""
    every = full_rank(base.weights[path])
    return delta.numel() if is_partial(every, delta.numel()) else every


def _layer_shift(
    component: str, path: str, basis: Basis, base: BaseWeights, delta: Tensor
) -> LayerShift:
    sigma = _array(basis.sigma)
    if basis.is_complete:
        count, energy = sigma.size, float((sigma.astype(np.float64) ** 2).sum())
    else:
        count, energy = full_rank(base.weights[path]), energy_of(base.matrix(path))
    return LayerShift(component, path, sigma, _array(delta), count, energy)


def most_moved(shifts: Iterable[LayerShift], count: int) -> list[LayerShift]:
    """The `count` layers whose singular values have moved most, first the one that moved most."""
    return sorted(shifts, key=lambda shift: shift.moved, reverse=True)[:count]


@dataclass(frozen=True)
class Split:
    """Matrices `(c, m, n)`, as their largest and their smallest singular values make them.

    Attributes:
        rank: r, how many singular values each part has.
        full_rank: how many there are.
        whole: the matrices.
        leading: `Σ σᵢ uᵢ vᵢᵀ` over the r largest.
        trailing: the same over the r smallest.
    """

    rank: int
    full_rank: int
    whole: np.ndarray
    leading: np.ndarray
    trailing: np.ndarray

    @property
    def leading_share(self) -> float:
        """Frobenius norm of the leading part, relative to the whole."""
        return _share(self.leading, self.whole)

    @property
    def trailing_share(self) -> float:
        """Frobenius norm of the trailing part, relative to the whole."""
        return _share(self.trailing, self.whole)


def split(bases: Sequence[Basis], rank: int) -> Split:
    """What the `rank` largest and the `rank` smallest singular values of matrices carry.

    Args:
        bases: of each matrix, at full rank; all of one size.
        rank: brought into 1 … full rank.
    """
    full_rank = min(bases[0].u.shape[1], bases[0].v.shape[1])
    rank = min(max(rank, 1), full_rank)
    parts = (slice(None), slice(0, rank), slice(full_rank - rank, None))
    arrays = (np.stack([_part(basis, part) for basis in bases]) for part in parts)
    return Split(rank, full_rank, *arrays)


def weight_basis(pipe: Any, component: str, path: str) -> Basis:
    """The singular values and vectors of one weight of the base, at full rank: to be split, which
    asks for the smallest as well as for the largest.

    Args:
        pipe: the base pipeline; only read.
        component: such as `"unet"`.
        path: module path of a Linear or Conv in it.
    """
    model = components.models_of(pipe)[component]
    base = base_weights(model, {path: shiftable_layers(model)[path]})
    return load_bases(base, show_progress=False)[path]


def image_bases(image: Image.Image) -> list[Basis]:
    """The singular values and vectors of a picture's channels, red, green and blue in 0..1.

    A large picture is reduced before.
    """
    small = image.convert("RGB")
    small.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.LANCZOS)
    channels = torch.from_numpy(np.asarray(small, np.float32) / 255).permute(2, 0, 1)
    return [solver.singular_basis(channel) for channel in channels]


def sample_picture() -> Image.Image:
    """A photo of one of the sample subjects; where there are none, rings of colour."""
    photo = SAMPLES / "subjects" / "teal_ghost" / "00.png"  # no singular value of it is zero
    if photo.is_file():
        return Image.open(photo)
    ring = Image.radial_gradient("L")
    return Image.merge("RGB", [ImageChops.offset(ring, 40 * channel) for channel in range(3)])


def as_picture(channels: np.ndarray) -> Image.Image:
    """Channels `(3, h, w)` in 0..1 as a picture; values beyond are clipped."""
    pixels = (channels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def as_stretched_picture(channels: np.ndarray) -> Image.Image:
    """Channels `(3, h, w)` around zero as a picture in full contrast around middle grey."""
    largest = np.abs(channels).max() or 1.0
    return as_picture(0.5 + channels / (2 * largest))


def _part(basis: Basis, chosen: slice) -> np.ndarray:
    sigma = basis.sigma[chosen]
    if not sigma.numel():  # a basis ends where the singular values are zero
        return np.zeros((basis.u.shape[1], basis.v.shape[1]), np.float32)
    return _array(shift_matrix(Basis(basis.u[chosen], basis.v[chosen], sigma), sigma))


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(np.linalg.norm(part) / (np.linalg.norm(whole) or 1.0))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _per_component(values: Mapping[str, str]) -> str:
    """`unet 48, text_encoder 16`."""
    return ", ".join(f"{component} {value}" for component, value in values.items())


def _training_facts(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels = {
        "max_train_steps": "Steps asked for",
        "learning_rate": "Learning rate",
        "seed": "Seed",
    }
    known = {key: training.get(key) for key in labels}
    return [(labels[key], str(value)) for key, value in known.items() if value is not None]
