"""The leading singular triplets of a large matrix, each of them proven.

A shift moves single vectors, not the space of many, so a vector counts only if it is shown to be
the right one. For a symmetric G, a unit vector v and its value θ, the sine of the angle between v
and the eigenvector is at most `‖G v − θ v‖ / gap`, where gap is the distance of θ to the other
eigenvalues (Parlett, The Symmetric Eigenvalue Problem, section 11.7). Residuals are computed. That
no eigenvalue was overlooked is shown by a Cholesky factor, which positive definite matrices alone
have: if `τ I − (G − Σ θᵢ vᵢ vᵢᵀ)` over r vectors has one, all but r eigenvalues of G are below τ
(Weyl's inequality). All of it is in float64, so that threads, devices and libraries agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.krylov import KrylovSpace, RitzPairs
from svfit_diffusion.spectrum.rank import Rank

ANGLE = 1e-5
"""Sine of how far a vector may be off: a thirtieth of what rounding it to float16 does."""
_ROUNDING = 1e-14
"""Share of the largest eigenvalue by which float64 sums may move the others."""
_SETTLED = 1e-12
"""Share of the largest eigenvalue below which residuals hardly fall any more."""

_SMALLEST = 1280
_LARGEST_SHARE = 1 / 4
"""Shortest side, and share of all triplets, from and up to which this is faster than all
(`benchmarks/basis_by_rank.py`)."""
_SPACE = 0.6
"""Share of the side up to which a Krylov space grows: from there on, all triplets cost as much."""
_FIRST_LOOK = 80
"""Dimensions from which on a space tells roughly how much energy there is where."""
_GROWTH = 1.15
"""Between two looks at a space."""
_PART = 128
"""Rows, and columns, that are in float64 or multiplied at a time."""


def leading_basis(matrix: Tensor, rank: Rank) -> Basis | None:
    """The leading triplets of a matrix `(d_out, d_in)`, or None where they take all to tell.

    Triplets of near-equal σ, within the rank or across its end, have no vectors of their own: which
    are found depends on roundings. None of them are given here, nor where too few are wanted, or
    too many, for this to be faster.

    Args:
        matrix: on any device that has float64, in a float dtype.
        rank: how many, as a number or as a share of the energy.

    Returns:
        A basis on the matrix's device, contiguous, float32, not complete; vectors are off by
        `ANGLE` at most on the shorter side, and by little more on the other.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.mT if tall else matrix
    if not is_partial(len(wide), rank):
        return None
    gram = _gram(wide)
    found = _eigenvectors(gram, rank)
    if found is None or not _are_proven(gram, *found):
        return None
    near, values = found
    sigma = values[:-1].sqrt().to(near.device)
    far = torch.cat([(near @ part.double()).float() for part in wide.split(_PART, 1)], dim=1)
    far /= sigma[:, None]
    u, v = (far, near.float()) if tall else (near.float(), far)
    return Basis(u.contiguous(), v.contiguous(), sigma.float(), is_complete=False)


def is_partial(side: int, rank: Rank) -> bool:
    """Whether leading triplets are looked for alone, at first, where the shorter side is `side`."""
    if side < _SMALLEST:
        return False
    return rank <= side * _LARGEST_SHARE if isinstance(rank, int) else rank < 1


def _gram(wide: Tensor) -> Tensor:
    """`W Wᵀ` in float64, without such a copy of all of W; one half is computed, and mirrored."""
    side = len(wide)
    gram = torch.zeros(side, side, dtype=torch.float64, device=wide.device)
    blocks = [slice(begin, begin + _PART) for begin in range(0, side, _PART)]
    for part in wide.split(_PART, dim=1):
        precise = part.double()
        for rows in blocks:
            gram[rows, : rows.stop].addmm_(precise[rows], precise[: rows.stop].mT)
    for rows in blocks:
        gram[: rows.start, rows] = gram[rows, : rows.start].mT
    return gram


def _eigenvectors(gram: Tensor, rank: Rank) -> tuple[Tensor, Tensor] | None:
    """Leading eigenvectors `(r, n)`, and `r + 1` eigenvalues of which the last may be too small.

    None where they cannot be told apart, or not within a space that is worth its time.
    """
    side, energy = len(gram), float(gram.trace())
    most = int(side * _SPACE)
    space = KrylovSpace(gram, most)
    look = 2 * rank if isinstance(rank, int) else _FIRST_LOOK
    grows = True
    while grows and space.size < most:
        grows = space.grow()
        if grows and space.size < look:
            continue
        look = int(_GROWTH * space.size)
        pairs = space.pairs()
        count = rank if isinstance(rank, int) else _count_for(rank * energy, pairs, side)
        if count is None:
            return None
        if count >= space.size:
            continue
        values = pairs.values[: count + 1]
        allowed, residuals = _allowed(values), pairs.residuals[:count]
        if (residuals <= allowed).all():
            return space.vectors(pairs.coordinates[:count]), values
        if (residuals > allowed)[residuals <= _SETTLED * values[0]].any():
            return None
    return None


def _count_for(energy: float, pairs: RitzPairs, side: int) -> int | None:
    """How many leading values have a sum of `energy`, as far as a space can tell: it tells too many
    as long as it is small. None where more are needed than are looked for.
    """
    largest = pairs.values + pairs.residuals
    places = torch.arange(1, len(largest) + 1)
    at_most = largest.cumsum(0) + (side * _LARGEST_SHARE - places).clamp(min=0) * largest
    if at_most.min() < energy:
        return None
    return int((pairs.values.cumsum(0) < energy).sum()) + 1


def _allowed(values: Tensor) -> Tensor:
    """The residuals `(r,)` up to which vectors are right, of `r + 1` eigenvalues.

    The last counts for half its distance, as `_are_proven` shows no more of it.
    """
    distances = values[:-1] - values[1:]
    distances[-1] /= 2
    gaps = torch.minimum(distances, torch.cat([distances[:1], distances[:-1]]))
    return ANGLE * gaps - _ROUNDING * values[0]


def _are_proven(gram: Tensor, vectors: Tensor, values: Tensor) -> bool:
    """Whether residuals allow these vectors, and no eigenvalue is missing. Overwrites `gram`."""
    own = values[:-1, None].to(gram.device)
    residuals = (vectors @ gram - own * vectors).norm(dim=1).cpu()
    if not (residuals <= _allowed(values)).all():
        return False
    rest = gram.neg_().addmm_(vectors.mT * own.mT, vectors)
    rest.diagonal().add_(values[-2:].mean().to(gram.device))
    # In its own place, which a transposed matrix allows: LAPACK wants columns.
    info = torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(rest.mT, out=(rest.mT, info))
    return not info.any()
