"""Basis files: the triplets of one weight, under the weight's digest.

`<sha256 of the float16 weight>.safetensors` holds `u`, `v`, `sigma` and `probes` of all triplets of
σ above zero, or, in a format of its own, of the leading ones alone. Vectors are in float16. Their
rounding changes a shift by 0.03 % and is part of what the basis is: every user of it gets the same.
A file is written under a temporary name and moved into place. It names its weight and holds a
checksum, both checked on every read. It is mapped, and in memory only as far as it is in use.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from pathlib import Path

import torch

from svfit_diffusion.files.atomic import make_folder, write_safetensors
from svfit_diffusion.files.mapped import map_safetensors
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.sketch import PROBES, probes_of

FORMAT = "svfit-basis-4"
LEADING_FORMAT = f"{FORMAT}-leading"
"""Of files with the leading triplets alone, which earlier versions would take for all."""

_NAME = re.compile(r"([0-9a-f]{64})\.safetensors")
_HEADER_BYTES = 512
"""A header takes 376 to 456, by the length of its numbers."""
_DAY = 24 * 60 * 60


def basis_path(folder: Path, digest: str) -> Path:
    """Where the basis of the weight of that digest is kept."""
    return folder / f"{digest}.safetensors"


def digest_in(name: str) -> str | None:
    """The digest in the name of a basis file; None if it is not such a name."""
    match = _NAME.fullmatch(name)
    return match[1] if match else None


def basis_bytes(d_out: int, d_in: int, rank: int | None = None) -> int:
    """Size of the basis file of a matrix `(d_out, d_in)`, at most; less if it lacks rank.

    Args:
        d_out: rows.
        d_in: columns.
        rank: of how many triplets; all by default.
    """
    full = min(d_out, d_in)
    count = full if rank is None else min(rank, full)
    return count * (2 * (d_out + d_in) + 4 * (1 + PROBES)) + _HEADER_BYTES


def read_basis(path: Path, digest: str) -> Basis:
    """Map a basis file, and check all that it says of itself.

    Args:
        path: the file.
        digest: of the weight that its basis should be of.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, of another format, or of another weight.
    """
    mapped = map_safetensors(path)
    if mapped.metadata.get("format") not in (FORMAT, LEADING_FORMAT):
        raise ValueError("not a basis file of this version")
    if set(mapped.tensors) != {"u", "v", "sigma", "probes"}:
        raise ValueError("not the tensors expected")
    is_complete = mapped.metadata["format"] == FORMAT
    basis = Basis(**mapped.tensors, file=mapped, is_complete=is_complete)
    if mapped.metadata.get("weight") != digest:
        raise ValueError("of another weight")
    if not _is_consistent(basis):
        raise ValueError("not the shapes and types expected")
    if mapped.metadata.get("checksum") != _checksum(basis):
        raise ValueError("the checksum is wrong")
    return basis


def write_basis(folder: Path, digest: str, basis: Basis) -> None:
    """Write a basis with vectors in float16 to its file in a folder, which is made if need be.

    Raises:
        StorageError: there is no room or no permission; a file that was there is untouched.
    """
    tensors = {"u": basis.u, "v": basis.v, "sigma": basis.sigma, "probes": probes_of(basis)}
    format = FORMAT if basis.is_complete else LEADING_FORMAT
    header = {"format": format, "weight": digest, "checksum": _checksum(basis)}
    make_folder(folder)
    write_safetensors(basis_path(folder, digest), tensors, header)


def mark_used(path: Path) -> None:
    """Note that a basis file is in use today, as the time of its last change.

    Its time of access would tell as much of a look at its header.
    """
    with contextlib.suppress(OSError):  # a cache that others own
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)


def _is_consistent(basis: Basis) -> bool:
    """Whether shapes and types are those of a basis with all its σ above zero, or with some."""
    if basis.u.dim() != 2 or basis.v.dim() != 2:
        return False
    rank, d_out, d_in = len(basis.u), basis.u.shape[1], basis.v.shape[1]
    actual = [(tuple(t.shape), t.dtype) for t in (basis.u, basis.v, basis.sigma, probes_of(basis))]
    half, single = torch.float16, torch.float32
    wanted = [
        ((rank, d_out), half),
        ((rank, d_in), half),
        ((rank,), single),
        ((PROBES, rank), single),
    ]
    return actual == wanted and (not basis.is_complete) <= rank <= min(d_out, d_in)


def _checksum(basis: Basis) -> str:
    """CRC-32 of everything in a basis: against damage, not against ill will."""
    checksum = 0
    for tensor in (basis.u, basis.v, basis.sigma, probes_of(basis)):
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, checksum)
    return f"{checksum:08x}"
