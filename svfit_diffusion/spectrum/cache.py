"""Where bases live: computed once per base model, kept in a disk cache.

A basis belongs to one weight matrix, whatever model, file or precision it came in, so the cache
is addressed by content: a file (`basis_file`) per weight, by its digest. It has as many triplets as
were wanted so far: fewer are served from it, more are computed anew and replace it. Processes may
race for it; a damaged or foreign one is recomputed. `stored` looks after the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm

from svfit_diffusion.errors import BasisError
from svfit_diffusion.files.atomic import clean_up
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import (
    Basis,
    Packed,
    canonical_weight,
    energy_of,
    full_rank,
    matrix_shape,
)
from svfit_diffusion.spectrum.basis_file import (
    basis_bytes,
    basis_path,
    mark_used,
    read_basis,
    write_basis,
)
from svfit_diffusion.spectrum.leading import is_partial
from svfit_diffusion.spectrum.rank import Rank, Ranks, triplets_known
from svfit_diffusion.spectrum.room import nearest, require_room
from svfit_diffusion.spectrum.workers import workers

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

    weights: Mapping[str, Tensor | Packed]
    digests: dict[str, str]

    def matrix(self, path: str) -> Tensor:
        """A layer's weight as its basis sees it: `(out, in·∏kernel)`, float16, on a device that can
        compute it.
        """
        weight = canonical_weight(self.weights[path])
        return weight.to(solver.with_float64(weight.device))

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


def read_base(weights: Mapping[str, Tensor | Packed]) -> BaseWeights:
    """Hash the weights of some layers, by module path.

    Raises:
        BasisError: a weight cannot be decomposed, named by its path.
    """
    with workers(_THREADS) as pool:
        digests = dict(zip(weights, pool.map(_digest, weights, weights.values()), strict=True))
    return BaseWeights(dict(weights), digests)


def load_bases(
    base: BaseWeights,
    rank: Ranks = 1.0,
    *,
    show_progress: bool = True,
    cache: Path | None = None,
    device: torch.device | None = None,
) -> dict[str, Basis]:
    """The leading triplets of the weights of `base`, from the cache where it has them.

    Args:
        base: weights from `read_base`.
        rank: how many triplets, of each or by module path; all by default. A weight that lacks
            rank gives what it has.
        show_progress: show a progress bar while singular values are computed.
        cache: cache folder, `cache_directory()` by default.
        device: where singular values are computed; by default where their weight is.

    Returns:
        Bases by module path, vectors in float16, mapped from the cache where it can be written.

    Raises:
        CacheError: the cache could be written, but its disk has no room for what must be computed.
    """
    folder = cache_directory() if cache is None else cache
    ranks = ranks_of(base, rank)
    with workers(_THREADS) as pool:
        read = pool.map(lambda path: _read(folder, base, path, ranks[path]), base.weights)
        found = dict(zip(base.weights, read, strict=True))
    missing = [path for path, basis in found.items() if basis is None]
    bases = {path: basis for path, basis in found.items() if basis is not None}
    if missing:
        with contextlib.suppress(OSError):
            clean_up(folder, "*.safetensors", idle=_HOUR)  # others may be at work
        if os.access(nearest(folder), os.W_OK):
            require_room(folder, bytes_known(base.only(missing), rank))
    computed = _compute(base, {path: ranks[path] for path in missing}, folder, device)
    for path, basis in tqdm(
        zip(missing, computed, strict=True),
        desc="Singular values (once per base model)",
        total=len(missing),
        disable=not (show_progress and missing),
    ):
        bases[path] = basis
    return {path: bases[path] for path in base.weights}


def missing_bases(
    base: BaseWeights, rank: Ranks = 1.0, *, cache: Path | None = None
) -> BaseWeights:
    """The part of `base` whose bases the cache lacks; of layers with one weight, the first.

    Args:
        base: weights from `read_base`.
        rank: how many triplets, as in `load_bases`.
        cache: cache folder, `cache_directory()` by default.
    """
    folder = cache_directory() if cache is None else cache
    ranks = ranks_of(base, rank)
    first = {digest: path for path, digest in reversed(base.digests.items())}
    with workers(_THREADS) as pool:
        read = pool.map(lambda path: _read(folder, base, path, ranks[path]), first.values())
        missing = {path for path, basis in zip(first.values(), read, strict=True) if basis is None}
    return base.only(missing)


def ranks_of(base: BaseWeights, rank: Ranks) -> dict[str, Rank]:
    """The rank of each layer; of layers with one weight, the highest of theirs."""
    if not isinstance(rank, Mapping):
        return dict.fromkeys(base.weights, rank)
    highest: dict[str, int] = {}
    for path in base.weights:
        digest = base.digests[path]
        highest[digest] = max(rank[path], highest.get(digest, 1))
    return {path: highest[base.digests[path]] for path in base.weights}


def bytes_known(base: BaseWeights, rank: Ranks = 1.0) -> int:
    """Bytes of the files of some bases, at most, as far as they are known before they are computed:
    how many triplets a share of the energy below 1 means, is not.
    """
    known = {base.digests[p]: (p, triplets_known(r)) for p, r in ranks_of(base, rank).items()}
    shapes = [(*matrix_shape(base.weights[path].shape), count) for path, count in known.values()]
    return sum(basis_bytes(d_out, d_in, count) for d_out, d_in, count in shapes)


def _compute(
    base: BaseWeights, ranks: Mapping[str, Rank], folder: Path, device: torch.device | None
) -> Iterator[Basis]:
    """The bases of the layers that have a rank here, in their order, vectors in float16; each is
    cached as it comes.
    """
    is_full = threading.Event()

    def compute(path: str) -> Basis:
        matrix, rank = base.matrix(path), ranks[path]
        basis = solver.solve(matrix.to(places[path]), rank)
        basis = basis.to(matrix.device, torch.float16)
        if not is_full.is_set() and not _write(folder, base.digests[path], basis):
            is_full.set()
        # From the file, as later: it need not stay in memory.
        return _read(folder, base, path, rank) or basis

    are_partial = all(is_partial(full_rank(base.weights[p]), rank) for p, rank in ranks.items())
    places = {path: solver.with_float64(device or base.weights[path].device) for path in ranks}
    on_cpu = all(place.type == "cpu" for place in places.values())
    count, threads_each = _workers(on_cpu, are_partial)
    if count == 1:
        yield from map(compute, ranks)
        return
    for place in set(places.values()):
        # PyTorch's libraries for GPUs are loaded at their first use, which must not be in threads.
        torch.linalg.cholesky_ex(torch.ones(1, 1, device=place))
    with workers(count, threads_each) as pool:
        yield from pool.map(compute, ranks)


def _workers(on_cpu: bool, are_partial: bool) -> tuple[int, int]:
    """How many matrices are decomposed at a time, and by how many threads each.

    Full decompositions scale poorly over threads, and fill a GPU. Partial ones are products for the
    most part, which scale, so that two at a time keep memory low; their small matrices are left to
    the CPU, so that a GPU would wait for one.
    """
    threads = torch.get_num_threads()
    if are_partial:
        count = min(threads, 2 if on_cpu else 4)
        return count, threads // count
    return (threads, 1) if on_cpu else (1, threads)


def _digest(path: str, weight: Tensor | Packed) -> str:
    try:
        matrix = canonical_weight(weight).cpu().contiguous()
    except BasisError as error:
        raise BasisError(f"{path}: {error}") from None
    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    digest.update(matrix.numpy().data)
    return digest.hexdigest()


def _read(folder: Path, base: BaseWeights, path: str, rank: Rank) -> Basis | None:
    """The cached basis of a layer, or None where there is none that can be trusted, or none of
    enough triplets.
    """
    digest = base.digests[path]
    file = basis_path(folder, digest)
    if not file.is_file():
        return None
    try:
        basis = read_basis(file, digest)
        d_out, d_in = matrix_shape(base.weights[path].shape)
        if (basis.u.shape[1], basis.v.shape[1]) != (d_out, d_in):
            raise ValueError("of another weight")
    except (OSError, ValueError) as error:
        logger.warning("Recomputing singular values: cache file %s is unusable (%s)", file, error)
        return None
    wanted = basis.leading(rank, lambda: energy_of(base.matrix(path)))
    basis.release()
    mark_used(file)
    return wanted


def _write(folder: Path, digest: str, basis: Basis) -> bool:
    """Cache a basis, unless others have cached more of it meanwhile, or warn that it cannot be."""
    try:
        if not _is_surpassed(folder, digest, basis):
            write_basis(folder, digest, basis)
    except OSError as error:
        logger.warning(
            "Singular values could not be cached in %s, nor are others: %s", folder, error
        )
        return False
    return True


def _is_surpassed(folder: Path, digest: str, basis: Basis) -> bool:
    """Whether the cache has more triplets of a weight than a basis has."""
    if basis.is_complete:
        return False
    try:
        there = read_basis(basis_path(folder, digest), digest)
    except (OSError, ValueError):
        return False
    return there.is_complete or there.rank > basis.rank
