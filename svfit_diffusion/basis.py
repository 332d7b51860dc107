"""Where bases live: computed once per base model, kept in a disk cache.

A basis belongs to one weight matrix, whatever model, file or precision it came in, so the cache
is addressed by content: `<cache>/<sha256 of the float16 weight>.safetensors`, full rank. A file is
written under a temporary name and moved into place, so processes may race for it, and is checked
against its weight on every read, so a damaged or foreign one is recomputed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from svfit_diffusion import spectral
from svfit_diffusion.files import write_safetensors
from svfit_diffusion.spectral import Basis

logger = logging.getLogger(__name__)

_FORMAT = "svfit-basis-1"
# A float32 SVD rebuilds W to about 1e-6 of its norm; a damaged file misses by far more.
_PROBE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BaseWeights:
    """The weights of some layers of a base model, as their bases see them.

    Attributes:
        matrices: float16 matrix `(out, in·∏kernel)` of each layer, by module path.
        digests: SHA-256 of each, over shape and values.
    """

    matrices: dict[str, Tensor]
    digests: dict[str, str]

    def fingerprint(self, paths: Iterable[str] | None = None) -> str:
        """`fingerprint` of these layers."""
        return fingerprint(self.digests, paths)


def fingerprint(digests: Mapping[str, str], paths: Iterable[str] | None = None) -> str:
    """One digest over the digests of some layers (default: all), whatever their names and order."""
    chosen = sorted(digests[path] for path in (digests if paths is None else paths))
    return hashlib.sha256("".join(chosen).encode()).hexdigest()


def cache_directory() -> Path:
    """`$SVFIT_CACHE`, or `svfit` under the Hugging Face cache root (`$HF_HOME`)."""
    return Path(os.environ.get("SVFIT_CACHE") or Path(HF_HOME) / "svfit")


def read_base(model: nn.Module, paths: Iterable[str]) -> BaseWeights:
    """Collect the float16 weights of `model`'s layers at `paths`.

    bfloat16 keeps too few bits for a basis (12–17 % error of the shift, DESIGN section 3), so for a
    model loaded in it the weights are read again from the files it was loaded from.

    Raises:
        BasisError: a weight is quantised or not finite.
    """
    paths = list(paths)
    weights: dict[str, Tensor] = {
        path: model.get_submodule(path).get_parameter("weight") for path in paths
    }
    if any(weight.dtype == torch.bfloat16 for weight in weights.values()):
        weights = _stored_weights(model, paths) or weights
    matrices = {path: spectral.canonical_weight(weight) for path, weight in weights.items()}
    return BaseWeights(matrices, {path: _digest(matrix) for path, matrix in matrices.items()})


def load_bases(
    base: BaseWeights, *, show_progress: bool = True, cache: Path | None = None
) -> dict[str, Basis]:
    """The full-rank bases of `base`, from the cache where it has them.

    Args:
        base: weights from `read_base`; an SVD runs on the device they are on.
        show_progress: show a progress bar while singular values are computed.
        cache: cache folder, `cache_directory()` by default.

    Returns:
        Float32 bases by module path; those from the cache are memory-mapped.
    """
    folder = cache_directory() if cache is None else cache
    found = {path: _read(folder, base.digests[path], m) for path, m in base.matrices.items()}
    missing = [path for path, basis in found.items() if basis is None]
    bases = {path: basis for path, basis in found.items() if basis is not None}
    for path in tqdm(
        missing,
        desc="Singular values (once per base model)",
        disable=not (show_progress and missing),
    ):
        basis = spectral.singular_basis(base.matrices[path])
        _write(folder, base.digests[path], basis)
        bases[path] = basis
    return bases


def _digest(matrix: Tensor) -> str:
    content = matrix.cpu().contiguous()
    return hashlib.sha256(
        str(tuple(content.shape)).encode() + content.numpy().tobytes()
    ).hexdigest()


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"


def _read(folder: Path, digest: str, matrix: Tensor) -> Basis | None:
    """The cached basis of `matrix`, or None where there is none that can be trusted."""
    path = _file(folder, digest)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise ValueError("not a basis file of this version")
            basis = Basis(*(file.get_tensor(name) for name in ("u", "v", "sigma")))
        _verify(basis, matrix)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError: torch's memory map found the file gone, another process having removed it.
        logger.warning("Recomputing singular values: cache file %s is unusable (%s)", path, error)
        return None
    return basis


def _verify(basis: Basis, matrix: Tensor) -> None:
    """Raise ValueError unless `basis` is an SVD of `matrix`, tried on random vectors."""
    d_out, d_in = matrix.shape
    rank = min(d_out, d_in)
    u, v, sigma = basis.u, basis.v, basis.sigma
    if (u.shape, v.shape, sigma.shape) != ((rank, d_out), (rank, d_in), (rank,)):
        raise ValueError("shapes differ from the weight's")
    if not u.dtype == v.dtype == sigma.dtype == torch.float32:
        raise ValueError("not in float32")
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(d_in, generator=generator)
    weights = torch.randn(rank, generator=generator)
    rebuilt = {
        "U diag(σ) Vᵀ is not the weight": (
            u.mT @ (sigma * (v @ probe)),
            matrix.cpu().float() @ probe,
        ),
        # Vectors of small singular values do not show above, but δ multiplies them like all others.
        "U is not orthonormal": (u @ (u.mT @ weights), weights),
        "V is not orthonormal": (v @ (v.mT @ weights), weights),
    }
    for problem, (actual, expected) in rebuilt.items():
        # Negated so that NaN fails.
        if not torch.dist(actual, expected) <= _PROBE_TOLERANCE * expected.norm():
            raise ValueError(problem)
    if (sigma.diff() > 0).any():
        raise ValueError("singular values are not in descending order")


def _write(folder: Path, digest: str, basis: Basis) -> None:
    tensors = {"u": basis.u, "v": basis.v, "sigma": basis.sigma}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(_file(folder, digest), tensors, {"format": _FORMAT})
    except OSError as error:
        logger.warning("Singular values could not be cached in %s: %s", folder, error)


def _stored_weights(model: Any, paths: list[str]) -> dict[str, Tensor] | None:
    """The weights in the files that a bfloat16 `model` was loaded from, in float32.

    None, with a warning, where the files are gone or hold other weights than the model.
    """
    source = getattr(model.config, "_name_or_path", "")
    for variant in (None, "fp16"):
        try:
            stored: Any = type(model).from_pretrained(
                source,
                torch_dtype=torch.float32,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
            )
        except (OSError, ValueError):
            continue
        weights = {path: stored.get_submodule(path).get_parameter("weight") for path in paths}
        if all(
            torch.equal(model.get_submodule(path).weight.cpu(), weight.to(torch.bfloat16))
            for path, weight in weights.items()
        ):
            return weights
    logger.warning(
        "The base model is loaded in bfloat16 and its stored weights were not found at %r: "
        "singular vectors come from rounded weights, and adapters will differ by some percent "
        "between this base and a float32 or float16 load of it.",
        source,
    )
    return None
