"""Sketches: a few numbers of a shift's matrix, which tell whether a basis is that of its training.

A shift `δ` means `U diag(δ) Vᵀ`, and `U` and `V` are computed anew on each machine. Where singular
values nearly meet, another solver may turn their vectors, and the same `δ` becomes another change.
So the numbers `aⱼᵀ (U diag(δ) Vᵀ) bⱼ` are kept, for fixed `aⱼ`, `bⱼ` of random signs: their mean
square is that of a matrix's Frobenius norm, so their differences measure how far two are apart.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis

PROBES = 4
"""Numbers in a sketch: by chance all four miss a difference of 100 % once in some 10⁸ layers."""

TOLERANCE = 0.01
"""Share of a shift up to which bases may differ; what float16 and float32 round is below 1e-3."""


def probes_of(basis: Basis) -> Tensor:
    """`(aⱼ·uᵢ)(bⱼ·vᵢ)`, `(PROBES, r)` float32: those that a basis has at hand, or computed."""
    if basis.probes is not None:
        return basis.probes
    u, v = basis.u.float(), basis.v.float()
    left, right = _signs("left", u.shape[1]), _signs("right", v.shape[1])
    return (left.to(u.device) @ u.mT) * (right.to(v.device) @ v.mT)


def sketch(basis: Basis, delta: Tensor) -> Tensor:
    """The sketch `(PROBES,)` float32, on the CPU, of a shift `(r,)` by a basis of at least r
    triplets.
    """
    probes = probes_of(basis).cpu()
    return probes[:, : delta.numel()] @ delta.detach().float().cpu()


def distance(found: Tensor, expected: Tensor, delta: Tensor) -> float:
    """How far two matrices `U diag(δ) Vᵀ` with these sketches are apart, as an estimated share of
    their Frobenius norm `‖δ‖`; 0 for a shift of zeros.
    """
    norm = float(delta.float().norm())
    difference = float((found.cpu() - expected.cpu()).norm()) / PROBES**0.5
    return difference / norm if norm else difference


def _signs(side: str, length: int) -> Tensor:
    """Fixed vectors of ±1, `(PROBES, length)` float32; a hash, as generators may change."""
    rows = []
    for number in range(PROBES):
        key = f"svfit sketch {side} {number}".encode()
        stream = bytearray(hashlib.shake_256(key).digest(-(-length // 8)))
        bits = torch.frombuffer(stream, dtype=torch.uint8)[:, None] >> torch.arange(8) & 1
        rows.append(bits.flatten()[:length].float() * 2 - 1)
    return torch.stack(rows)
