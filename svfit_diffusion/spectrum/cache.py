"""Where bases live: computed once per base model, kept in a disk cache.

A basis belongs to one weight matrix, whatever model, file or precision it came in, so the cache
is addressed by content: a file (`basis_file`) per weight, by its digest. Processes may race for it;
a damaged or foreign one is recomputed. `stored` looks after the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm

from svfit_diffusion.errors import BasisError
from svfit_diffusion.files.atomic import clean_up
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import Basis, as_matrix, canonical_weight
from svfit_diffusion.spectrum.basis_file import basis_path, mark_used, read_basis, write_basis
from svfit_diffusion.spectrum.workers import single_threads

logger = logging.getLogger(__name__)

_HOUR = 60 * 60
_THREADS = 4
"""Hashing and reading wait for memory and disk, and leave Python's lock."""


@dataclass(frozen=True)
class BaseWeights:
    """The weights of some layers of a base model.

    Attributes:
        weights: `(out, in, *kernel)` of each layer, by module path.
        digests: SHA-256 of each, over the shape and values of its `matrix`.
    """

    weights: dict[str, Tensor]
    digests: dict[str, str]

    def matrix(self, path: str) -> Tensor:
        """A layer's weight as its basis sees it: `(out, in·∏kernel)`, float16."""
        return canonical_weight(self.weights[path])

    def matrix_of(self, digest: str) -> Tensor | None:
        """`matrix` of the weight with that digest, if it is one of these."""
        path = next((path for path, own in self.digests.items() if own == digest), None)
        return None if path is None else self.matrix(path)

    def only(self, paths: Collection[str]) -> BaseWeights:
        """Some of these layers, in their order."""
        chosen = [path for path in self.weights if path in paths]
        return BaseWeights(
            {path: self.weights[path] for path in chosen},
            {path: self.digests[path] for path in chosen},
        )

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


def read_base(weights: Mapping[str, Tensor]) -> BaseWeights:
    """Hash the weights of some layers, by module path.

    Raises:
        BasisError: a weight cannot be decomposed, named by its path.
    """
    with single_threads(_THREADS) as pool:
        digests = dict(zip(weights, pool.map(_digest, weights, weights.values()), strict=True))
    return BaseWeights(dict(weights), digests)


def load_bases(
    base: BaseWeights,
    *,
    show_progress: bool = True,
    cache: Path | None = None,
    device: torch.device | None = None,
) -> dict[str, Basis]:
    """The bases of `base` with all triplets of σ above zero, from the cache where it has them.

    Args:
        base: weights from `read_base`.
        show_progress: show a progress bar while singular values are computed.
        cache: cache folder, `cache_directory()` by default.
        device: where an SVD runs; by default where its weight is.

    Returns:
        Bases by module path, vectors in float16, mapped from the cache where it can be written.
    """
    folder = cache_directory() if cache is None else cache
    with single_threads(_THREADS) as pool:
        read = pool.map(lambda path: _read(folder, base, path), base.weights)
        found = dict(zip(base.weights, read, strict=True))
    missing = [path for path, basis in found.items() if basis is None]
    bases = {path: basis for path, basis in found.items() if basis is not None}
    if missing:
        with contextlib.suppress(OSError):
            clean_up(folder, "*.safetensors", idle=_HOUR)  # others may be at work
    computed = _compute(base, missing, folder, device)
    for path, basis in tqdm(
        zip(missing, computed, strict=True),
        desc="Singular values (once per base model)",
        total=len(missing),
        disable=not (show_progress and missing),
    ):
        bases[path] = basis
    return {path: bases[path] for path in base.weights}


def missing_bases(base: BaseWeights, *, cache: Path | None = None) -> BaseWeights:
    """The part of `base` whose bases the cache lacks; of layers with one weight, the first.

    Args:
        base: weights from `read_base`.
        cache: cache folder, `cache_directory()` by default.
    """
    folder = cache_directory() if cache is None else cache
    first = {digest: path for path, digest in reversed(base.digests.items())}
    with single_threads(_THREADS) as pool:
        read = pool.map(lambda path: _read(folder, base, path), first.values())
        missing = {path for path, basis in zip(first.values(), read, strict=True) if basis is None}
    return base.only(missing)


def _compute(
    base: BaseWeights, paths: Sequence[str], folder: Path, device: torch.device | None
) -> Iterator[Basis]:
    """The bases of some layers in their order, vectors in float16; each is cached as it comes.

    On a CPU as many at a time as there are threads: solvers scale poorly.
    """

    is_full = threading.Event()

    def compute(path: str) -> Basis:
        matrix = base.matrix(path)
        basis = solver.singular_basis(matrix.to(device or matrix.device))
        basis = basis.to(matrix.device, torch.float16)
        if not is_full.is_set() and not _write(folder, base.digests[path], basis):
            is_full.set()
        # From the file, as later: it need not stay in memory.
        return _read(folder, base, path) or basis

    on_cpu = all((device or base.weights[path].device).type == "cpu" for path in paths)
    workers = torch.get_num_threads() if on_cpu else 1
    if workers == 1:
        yield from map(compute, paths)
        return
    with single_threads(workers) as pool:
        yield from pool.map(compute, paths)


def _digest(path: str, weight: Tensor) -> str:
    try:
        matrix = canonical_weight(weight).cpu().contiguous()
    except BasisError as error:
        raise BasisError(f"{path}: {error}") from None
    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    digest.update(matrix.numpy().data)
    return digest.hexdigest()


def _read(folder: Path, base: BaseWeights, path: str) -> Basis | None:
    """The cached basis of a layer, or None where there is none that can be trusted."""
    digest = base.digests[path]
    file = basis_path(folder, digest)
    if not file.is_file():
        return None
    try:
        basis = read_basis(file, digest)
        d_out, d_in = as_matrix(base.weights[path]).shape
        if (basis.u.shape[1], basis.v.shape[1]) != (d_out, d_in):
            raise ValueError("of another weight")
    except (OSError, ValueError) as error:
        logger.warning("Recomputing singular values: cache file %s is unusable (%s)", file, error)
        return None
    basis.release()
    mark_used(file)
    return basis


def _write(folder: Path, digest: str, basis: Basis) -> bool:
    """Cache a basis, or warn that it cannot be."""
    try:
        write_basis(folder, digest, basis)
    except OSError as error:
        logger.warning(
            "Singular values could not be cached in %s, nor are others: %s", folder, error
        )
        return False
    return True
