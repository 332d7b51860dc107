"""Krylov spaces: where the leading eigenvectors of a symmetric matrix show first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 16
"""Vectors that are multiplied at a time: more use the processor better, but turn the space to the
leading eigenvectors later. 8 and 32 took as long or longer (`benchmarks/NOTES.md`)."""
_DEPENDENT = 1e-12
"""Share of the largest eigenvalue of a block's correlations below which a direction is none."""
_SEED = 0


@dataclass(frozen=True)
class RitzPairs:
    """What a space knows of a matrix's eigenvectors, the largest eigenvalue first.

    Attributes:
        values: `(m,)` float64, on the CPU; each at most the eigenvalue in its place.
        coordinates: `(m, m)` float64, on the CPU: one vector per row, in the space's basis.
        residuals: `(m,)` float64, on the CPU: `‖G v − θ v‖`.
    """

    values: Tensor
    coordinates: Tensor
    residuals: Tensor


class KrylovSpace:
    """An orthonormal basis of the span of `X, G X, G² X, …` for random vectors X, and G within it.

    The basis is kept orthogonal as a whole, so that no eigenvalue appears twice. The small matrices
    are on the CPU, whose eigensolvers are the faster ones for them.

    Args:
        matrix: G, `(n, n)` symmetric, float64.
        most: dimensions that it may get.
    """

    def __init__(self, matrix: Tensor, most: int) -> None:
        n = len(matrix)
        generator = torch.Generator().manual_seed(_SEED)
        start = torch.randn(_BLOCK, n, generator=generator, dtype=torch.float64)
        self._matrix = matrix
        self._basis = matrix.new_empty(most + _BLOCK, n)
        self._inner: list[Tensor] = []  # rows of G within the space, as far as its diagonal
        self._next = _orthonormal(_orthonormal(start.to(matrix.device)))
        self._rest = self._next  # of G times the last block, outside the space
        self.size = 0

    def grow(self) -> bool:
        """Add a block of vectors; False if the matrix maps the space on itself already."""
        block = self._next
        if not len(block):
            return False
        begin, self.size = self.size, self.size + len(block)
        self._basis[begin : self.size] = block
        basis = self._basis[: self.size]
        image = block @ self._matrix
        inner = image @ basis.mT
        self._inner.append(inner.cpu())
        image -= inner @ basis
        self._rest = _outside(image, basis)
        self._next = _orthonormal(_outside(_orthonormal(self._rest), basis))
        return True

    def pairs(self) -> RitzPairs:
        """The best approximations of eigenvectors from the space (Rayleigh and Ritz)."""
        inner = torch.zeros(self.size, self.size, dtype=torch.float64)
        begin = 0
        for rows in self._inner:
            end = rows.shape[1]
            inner[begin:end, :end] = rows
            begin = end
        values, vectors = torch.linalg.eigh(inner, UPLO="L")
        coordinates = vectors.flip(1).mT
        # A vector's residual is what G takes out of the space, from the last block alone.
        last = coordinates[:, self.size - len(self._rest) :]
        squares, turns = torch.linalg.eigh((self._rest @ self._rest.mT).cpu())
        residuals = (last @ (turns * squares.clamp(min=0).sqrt())).norm(dim=1)
        return RitzPairs(values.flip(0), coordinates, residuals)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Vectors `(k, n)` on the matrix's device, of coordinates `(k, m)`."""
        return coordinates.to(self._basis.device) @ self._basis[: self.size]


def _outside(vectors: Tensor, basis: Tensor) -> Tensor:
    """What of some vectors is orthogonal to an orthonormal basis; both in rows."""
    return vectors - (vectors @ basis.mT) @ basis


def _orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span those given, fewer where these depend on one another.

    By the eigenvectors of their correlations: a few products and a tiny decomposition, where a QR
    factorisation of a few long vectors takes a GPU many steps (Stathopoulos and Wu, 2002).
    """
    lengths = vectors.norm(dim=1, keepdim=True)
    unit = (vectors / lengths)[lengths[:, 0] > 0]
    values, turns = torch.linalg.eigh((unit @ unit.mT).cpu())
    kept = values > _DEPENDENT * values.max() if len(unit) else values > 0
    scaled = turns[:, kept] * values[kept].rsqrt()
    return scaled.mT.to(unit.device) @ unit
