"""Where bases live: computed once per base model, kept in a disk cache.

A basis belongs to one weight matrix, whatever model, file or precision it came in, so the cache
is addressed by content: `<cache>/<sha256 of the float16 weight>.safetensors`, with all triplets of
σ above zero, vectors in float16. Their rounding changes a shift by 0.03 % and is part of what the
basis is: every user of it gets the same. A file is written under a temporary name and moved into
place, so processes may race for it. It names its weight and holds a checksum, both checked on every
read, so a damaged or foreign one is recomputed. Files are mapped, and in memory only as far as they
are in use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm

from svfit_diffusion.errors import BasisError
from svfit_diffusion.files.atomic import write_safetensors
from svfit_diffusion.files.mapped import map_safetensors
from svfit_diffusion.spectrum import solver
from svfit_diffusion.spectrum.basis import Basis, as_matrix, canonical_weight
from svfit_diffusion.spectrum.sketch import PROBES, probes_of

logger = logging.getLogger(__name__)

_FORMAT = "svfit-basis-4"
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
    with _single_threads(_THREADS) as pool:
        digests = dict(zip(weights, pool.map(_digest, weights, weights.values()), strict=True))
    return BaseWeights(dict(weights), digests)


def load_bases(
    base: BaseWeights, *, show_progress: bool = True, cache: Path | None = None
) -> dict[str, Basis]:
    """The bases of `base` with all triplets of σ above zero, from the cache where it has them.

    Args:
        base: weights from `read_base`; an SVD runs on the device they are on.
        show_progress: show a progress bar while singular values are computed.
        cache: cache folder, `cache_directory()` by default.

    Returns:
        Bases by module path, vectors in float16, mapped from the cache where it can be written.
    """
    folder = cache_directory() if cache is None else cache
    with _single_threads(_THREADS) as pool:
        read = pool.map(lambda path: _read(folder, base, path), base.weights)
        found = dict(zip(base.weights, read, strict=True))
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
    return {path: bases[path] for path in base.weights}


def _compute(base: BaseWeights, paths: Sequence[str], folder: Path) -> Iterator[Basis]:
    """The bases of some layers in their order, vectors in float16; each is cached as it comes.

    On a CPU as many at a time as there are threads: solvers scale poorly.
    """

    def compute(path: str) -> Basis:
        weight = base.weights[path]
        basis = solver.singular_basis(base.matrix(path)).to(weight.device, torch.float16)
        _write(folder, base.digests[path], basis)
        # From the file, as later: it need not stay in memory.
        return _read(folder, base, path) or basis

    on_cpu = all(base.weights[path].device.type == "cpu" for path in paths)
    workers = torch.get_num_threads() if on_cpu else 1
    if workers == 1:
        yield from map(compute, paths)
        return
    with _single_threads(workers) as pool:
        yield from pool.map(compute, paths)


@contextmanager
def _single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Workers that compute with one thread each."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # The setting is the worker's own, but threads started later would take it over.
        torch.set_num_threads(threads)


def _digest(path: str, weight: Tensor) -> str:
    try:
        matrix = canonical_weight(weight).cpu().contiguous()
    except BasisError as error:
        raise BasisError(f"{path}: {error}") from None
    digest = hashlib.sha256(str(tuple(matrix.shape)).encode())
    digest.update(matrix.numpy().data)
    return digest.hexdigest()


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"


def _read(folder: Path, base: BaseWeights, path: str) -> Basis | None:
    """The cached basis of a layer, or None where there is none that can be trusted."""
    digest = base.digests[path]
    file = _file(folder, digest)
    if not file.is_file():
        return None
    try:
        mapped = map_safetensors(file)
        if mapped.metadata.get("format") != _FORMAT:
            raise ValueError("not a basis file of this version")
        if set(mapped.tensors) != {"u", "v", "sigma", "probes"}:
            raise ValueError("not the tensors expected")
        basis = Basis(**mapped.tensors, file=mapped)
        if mapped.metadata.get("weight") != digest or not _fits(basis, base.weights[path]):
            raise ValueError("of another weight")
        if mapped.metadata.get("checksum") != _checksum(basis):
            raise ValueError("the checksum is wrong")
    except (OSError, ValueError) as error:
        logger.warning("Recomputing singular values: cache file %s is unusable (%s)", file, error)
        return None
    basis.release()
    return basis


def _fits(basis: Basis, weight: Tensor) -> bool:
    """Whether shapes and types are those of a basis of `weight`, with all its σ above zero."""
    d_out, d_in = as_matrix(weight).shape
    rank = basis.sigma.numel()
    actual = [(tuple(t.shape), t.dtype) for t in (basis.u, basis.v, basis.sigma, probes_of(basis))]
    half, single = torch.float16, torch.float32
    wanted = [
        ((rank, d_out), half),
        ((rank, d_in), half),
        ((rank,), single),
        ((PROBES, rank), single),
    ]
    return actual == wanted and rank <= min(d_out, d_in)


def _checksum(basis: Basis) -> str:
    """CRC-32 of everything in a basis: against damage, not against ill will."""
    checksum = 0
    for tensor in (basis.u, basis.v, basis.sigma, probes_of(basis)):
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, checksum)
    return f"{checksum:08x}"


def _write(folder: Path, digest: str, basis: Basis) -> None:
    tensors = {"u": basis.u, "v": basis.v, "sigma": basis.sigma, "probes": probes_of(basis)}
    header = {"format": _FORMAT, "weight": digest, "checksum": _checksum(basis)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(_file(folder, digest), tensors, header)
    except OSError as error:
        logger.warning("Singular values could not be cached in %s: %s", folder, error)
