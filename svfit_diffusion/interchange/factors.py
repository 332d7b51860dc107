"""Low-rank changes of one weight, as LoRA files hold them: `ΔW = up · down`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis


@dataclass(frozen=True)
class Factors:
    """A change of one layer's weight: `up · down`.

    Attributes:
        up: `(d_out, k)` float32.
        down: `(k, d_in)` float32, `d_in` with the kernel flattened in.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of `up`."""
        return self.down.shape[0]

    @property
    def matrix(self) -> Tensor:
        """`ΔW` `(d_out, d_in)`."""
        return self.up @ self.down

    @property
    def norm(self) -> float:
        """The Frobenius norm of `ΔW`, without forming it."""
        square = ((self.up.mT @ self.up).double() * (self.down @ self.down.mT).double()).sum()
        return max(float(square), 0.0) ** 0.5

    def padded(self, rank: int) -> Factors:
        """The same change with zeros up to a rank of at least its own."""
        extra = rank - self.rank
        up = torch.nn.functional.pad(self.up, (0, extra))
        return Factors(up, torch.nn.functional.pad(self.down, (0, 0, 0, extra)))

    def scaled(self, factor: float) -> Factors:
        """The change times a factor above zero, split evenly."""
        return Factors(self.up * factor**0.5, self.down * factor**0.5)


def zero_factors(d_out: int, d_in: int) -> Factors:
    """No change, of rank 1."""
    return Factors(torch.zeros(d_out, 1), torch.zeros(1, d_in))


def factors_of(basis: Basis, delta: Tensor, kept: Tensor) -> Factors:
    """The change that some entries of a shift make: `√|δ|` on either side, the sign on `up`.

    Split evenly, both factors stay far from what float16 cannot hold.

    Args:
        basis: at least `delta.numel()` triplets.
        delta: `(r,)`.
        kept: positions `(k,)` in it.
    """
    values = delta.detach().cpu().float()[kept]
    root = values.abs().sqrt()
    u, v = (side.cpu()[kept].float() for side in (basis.u, basis.v))
    return Factors((u * (root * values.sign())[:, None]).mT, v * root[:, None])


def fused(parts: Sequence[Factors]) -> Factors:
    """The change of layers of one input whose weights lie above each other.

    Of equal ranks, padded with zeros: readers can then take the parts out again as they were.
    """
    rank = max(part.rank for part in parts)
    equal = [part.padded(rank) for part in parts]
    up = torch.block_diag(*[part.up for part in equal])
    return Factors(up, torch.cat([part.down for part in equal]))
