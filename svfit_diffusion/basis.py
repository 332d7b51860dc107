"""Where bases live: computed once per base model, kept in a disk cache.

A basis belongs to one weight matrix, whatever model, file or precision it came in, so the cache
is addressed by content: `<cache>/<sha256 of the float16 weight>.safetensors`, full rank, vectors in
float16. Their rounding changes a shift by 0.03 % and is part of what the basis is: every user of it
gets the same. A file is written under a temporary name and moved into place, so processes may race
for it, and is checked against its weight on every read, so a damaged or foreign one is recomputed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

_FORMAT = "svfit-basis-2"
# Vectors rounded to float16 rebuild W to about 3e-4 of its norm; a damaged file misses by far more.
_PROBE_TOLERANCE = 2e-3
_THREADS = 4
"""Hashing and reading wait for memory and disk, and leave Python's lock."""


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
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = dict(zip(matrices, threads.map(_digest, matrices.values()), strict=True))
    return BaseWeights(matrices, digests)


def load_bases(
    base: BaseWeights, *, show_progress: bool = True, cache: Path | None = None
) -> dict[str, Basis]:
    """The full-rank bases of `base`, from the cache where it has them.

    Args:
        base: weights from `read_base`; an SVD runs on the device they are on.
        show_progress: show a progress bar while singular values are computed.
        cache: cache folder, `cache_directory()` by default.

    Returns:
        Bases by module path, vectors in float16; those from the cache are memory-mapped.
    """
    folder = cache_directory() if cache is None else cache
    with ThreadPoolExecutor(_THREADS) as threads:
        read = threads.map(
            lambda p: _read(folder, base.digests[p], base.matrices[p]), base.matrices
        )
        found = dict(zip(base.matrices, read, strict=True))
    missing = [path for path, basis in found.items() if basis is None]
    bases = {path: basis for path, basis in found.items() if basis is not None}
    computed = _compute(base, missing, folder)
    for path, basis in tqdm(
        zip(missing, computed, strict=True),
        desc="Singular values (once per base model)",
        total=len(missing),
        disable=not (show_progress and missing),
    ):
        bases[path] = basis
    return bases


def _compute(base: BaseWeights, paths: Sequence[str], folder: Path) -> Iterator[Basis]:
    """The bases of some layers in their order, vectors in float16; each is cached as it comes.

    On a CPU as many at a time as there are threads, with one each: solvers scale poorly. The number
    of threads is a setting of the calling thread.
    """

    def compute(path: str) -> Basis:
        matrix = base.matrices[path]
        basis = spectral.singular_basis(matrix).to(matrix.device, torch.float16)
        _write(folder, base.digests[path], basis)
        return basis

    on_cpu = all(base.matrices[path].device.type == "cpu" for path in paths)
    workers = torch.get_num_threads() if on_cpu else 1
    if workers == 1:
        yield from map(compute, paths)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(compute, paths)
        finally:
            pool.shutdown(cancel_futures=True)


def _digest(matrix: Tensor) -> str:
    content = matrix.cpu().contiguous()
    digest = hashlib.sha256(str(tuple(content.shape)).encode())
    digest.update(content.numpy().data)
    return digest.hexdigest()


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
    if not u.dtype == v.dtype == torch.float16 or sigma.dtype != torch.float32:
        raise ValueError("not of the types expected")
    u, v = u.float(), v.float()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(d_in, generator=generator)
    weights = torch.randn(rank, generator=generator)
    # Two vectors at a time: the time goes into reading u and v.
    from_probe, from_v = (v @ torch.stack([probe, v.mT @ weights], 1)).unbind(1)
    product, from_weights = (u.mT @ torch.stack([sigma * from_probe, weights], 1)).unbind(1)
    rebuilt = {
        "U diag(σ) Vᵀ is not the weight": (product, matrix.cpu().float() @ probe),
        # Vectors of small singular values do not show above, but δ multiplies them like all others.
        "U is not orthonormal": (u @ from_weights, weights),
        "V is not orthonormal": (from_v, weights),
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
