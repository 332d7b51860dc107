"""Pure tensor mathematics of SVFit: bases, ranks and shifted projections.

A frozen weight `W = U diag(σ) Vᵀ` is adapted by training a shift `δ` of its leading singular
values (SVFit, arXiv 2409.05926, section 3): `W' = W + U_r diag(δ) V_rᵀ`. Written that way `W'`
is `W` to the last bit at `δ = 0`, whatever the precision.

Convolution weights `(out, in, *kernel)` are read as matrices `(out, in·∏kernel)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.errors import BasisError, ConfigError
from svfit_diffusion.files import MappedFile
from svfit_diffusion.products import multiply

_TAIL = 1e-3
_RANK_DEFICIENT = 1e-7
"""Shares of the largest singular value; `singular_basis` tells what for."""

_ONE_SIDED_TAIL = 0.1
"""Share of the root mean square of σ up to which both vectors of a triplet are kept. Shifts are off
by 6e-4 then, twice what rounding all vectors to float16 costs anyway (`benchmarks/NOTES.md`).
"""
_SMALL = 2**16
"""Numbers in a weight up to which training saves time rather than memory."""

Rank = int | float
"""A number of singular values (int ≥ 1), or the share of spectral energy to keep (float ≤ 1)."""


@dataclass(frozen=True)
class Basis:
    """Leading singular vectors of one weight, one per row.

    Attributes:
        u: left vectors, `(r, d_out)`: row i is `uᵢ`. Rows, so that a smaller rank is a prefix. Of
            any float dtype, and cast where they are used: rounding them once, when they are
            stored, keeps one basis for all precisions of the base.
        v: right vectors, `(r, d_in)`, `d_in` with the kernel flattened in.
        sigma: singular values, `(r,)`, descending, float32.
        file: what the vectors are mapped from, if they are.
    """

    u: Tensor
    v: Tensor
    sigma: Tensor
    file: MappedFile | None = None

    @property
    def rank(self) -> int:
        """Number of singular triplets held."""
        return self.sigma.numel()

    def truncated(self, rank: int) -> Basis:
        """The `rank` leading triplets, as views."""
        assert 0 < rank <= self.rank
        return Basis(self.u[:rank], self.v[:rank], self.sigma[:rank], self.file)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Basis:
        """The same basis with its vectors on `device`, in `dtype` if given; σ stays float32."""
        dtype = dtype or self.u.dtype
        if (self.u.device, self.u.dtype) == (device, dtype):
            return self
        return Basis(self.u.to(device, dtype), self.v.to(device, dtype), self.sigma.to(device))

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles hold the vectors themselves, not the file.
        return Basis, (self.u, self.v, self.sigma)

    def release(self) -> None:
        """Take vectors that are mapped from a file out of memory, until they are used again."""
        if self.file is not None:
            self.file.release()


@dataclass(frozen=True)
class OneSidedBasis:
    """A basis with the vectors of its shorter side alone, as far as the weight gives the other.

    Since `W vᵢ = σᵢ uᵢ` and `Wᵀuᵢ = σᵢ vᵢ`, the shift is `U diag(δ) Vᵀ = W V diag(δ/σ) Vᵀ`, or
    `U diag(δ/σ) Uᵀ W`. The rounding errors of a vector thus grow by σ_rms/σᵢ; so where σᵢ is small,
    in the tail, both vectors are kept.

    Attributes:
        near: `(r, min(d_in, d_out))`: right vectors if `inputs_are_shorter`, else left ones.
        far: `(r − head, max(d_in, d_out))`: those of the tail on the other side.
        inverse: `(r,)` float32: 1/σ in the head, 1 in the tail.
    """

    near: Tensor
    far: Tensor
    inverse: Tensor

    @property
    def head(self) -> int:
        """Number of leading triplets with one vector."""
        return len(self.near) - len(self.far)

    def truncated(self, rank: int) -> OneSidedBasis:
        """The `rank` leading triplets, as views."""
        far = self.far[: max(rank - self.head, 0)]
        return OneSidedBasis(self.near[:rank], far, self.inverse[:rank])

    def to(self, device: torch.device) -> OneSidedBasis:
        """The same on `device`."""
        return OneSidedBasis(self.near.to(device), self.far.to(device), self.inverse.to(device))


def is_small(basis: Basis) -> bool:
    """Whether a weight is so small that its basis takes no memory worth saving in training."""
    return basis.u.shape[1] * basis.v.shape[1] <= _SMALL


def inputs_are_shorter(d_out: int, d_in: int) -> bool:
    """Which side of a weight a `OneSidedBasis` lies on: the inputs' if both are alike."""
    return d_in <= d_out


def one_sided(basis: Basis) -> OneSidedBasis:
    """The shorter side of a basis; of a small weight's, both. Views, but of a file copies, so that
    nothing else of it comes into memory with them.
    """
    d_out, d_in = basis.u.shape[1], basis.v.shape[1]
    head = 0
    if not is_small(basis):
        tail_begins = _ONE_SIDED_TAIL * basis.sigma.square().mean().sqrt()
        head = int((basis.sigma > tail_begins).sum())
    near, other = (basis.v, basis.u) if inputs_are_shorter(d_out, d_in) else (basis.u, basis.v)
    far = other[head:]
    if basis.file is not None:
        near, far = near.clone(), far.clone()
    inverse = torch.cat([1 / basis.sigma[:head], torch.ones_like(basis.sigma[head:])])
    return OneSidedBasis(near, far, inverse)


def as_matrix(weight: Tensor) -> Tensor:
    """View a weight `(out, in, *kernel)` as the matrix `(out, in·∏kernel)`."""
    return weight.reshape(weight.shape[0], -1)


def full_rank(weight: Tensor) -> int:
    """Number of singular values of a weight `(out, in, *kernel)`."""
    return min(as_matrix(weight).shape)


def canonical_weight(weight: Tensor) -> Tensor:
    """The float16 rounding `(out, in·∏kernel)` of a weight, on which its basis is defined.

    A base loaded in float32 and its float16 variant thus share one basis, exactly.

    Raises:
        BasisError: the weight is not floating point, not in memory, or not finite in float16.
    """
    if weight.is_meta:
        raise BasisError(
            "a weight is not in memory (sequential offloading puts it on the meta device): "
            "load the adapter on a base model without it; model offloading works"
        )
    if not weight.is_floating_point():
        raise BasisError(
            f"cannot decompose a weight of dtype {weight.dtype}: load the base model unquantised"
        )
    rounded = as_matrix(weight.detach()).to(torch.float16)
    # One sum instead of a mask: NaN and infinity pass into it, and finite float16s do not overflow.
    if not torch.isfinite(rounded.sum(dtype=torch.float32)):
        raise BasisError(
            "a weight holds NaN, infinity or values beyond ±65504; "
            "the base model file is damaged or not usable in float16"
        )
    return rounded


def singular_basis(matrix: Tensor) -> Basis:
    """All singular triplets of a matrix `(d_out, d_in)`.

    The eigenvectors of the smaller of `W Wᵀ` and `WᵀW`, in float64, are the singular vectors of
    that side; the others follow from W. That is as fast as a float32 SVD and far more exact, since
    float64 leaves room for squaring σ; where it does not (σ below a thousandth of the largest), an
    SVD of the remaining few rows finishes, and a matrix that lacks rank gets an SVD as a whole.
    Solvers on different machines thus agree to some 1e-10, and their roundings nearly always.

    Returns:
        A basis of rank `min(d_out, d_in)` on the matrix's device, contiguous, float32.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.mT if tall else matrix).double()
    left, sigma, right = _wide_svd(wide)
    u, v = (right, left) if tall else (left, right)
    return Basis(u.float().contiguous(), v.float().contiguous(), sigma.float())


def _wide_svd(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors `(k, k)` and right vectors `(k, n)` in rows, σ `(k,)` descending; k ≤ n."""
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    left = vectors.flip(1).mT
    sigma = values.flip(0).clamp(min=0).sqrt()
    head = int((sigma > _TAIL * sigma[0]).sum())
    tail, tail_sigma, tail_right = torch.linalg.svd(left[head:] @ wide, full_matrices=False)
    if not sigma[0] > 0 or (tail_sigma <= _RANK_DEFICIENT * sigma[0]).any():
        u, sigma, right = torch.linalg.svd(wide, full_matrices=False)
        return u.mT, sigma, right
    # A float32 product: its error, of 1e-7 σ₁/σ, stays below that of rounding to float16.
    head_right = multiply(left[:head].float(), wide.float()).double() / sigma[:head, None]
    return (
        torch.cat([left[:head], tail.mT @ left[head:]]),
        torch.cat([sigma[:head], tail_sigma]),
        torch.cat([head_right, tail_right]),
    )


def select_rank(sigma: Tensor, rank: Rank) -> int:
    """Number of singular values to train out of `sigma` `(k,)`.

    An int is taken as it is. A float in (0, 1] is an energy fraction: the smallest r with
    `Σ_{i≤r} σᵢ² ≥ rank · Σ σᵢ²` (the "information" of SVFit section 3.2); 1.0 means all.

    Raises:
        ConfigError: an int outside 1..k, or a float outside (0, 1].
    """
    check_rank(rank)
    if isinstance(rank, int):
        check_rank_fits(rank, sigma.numel(), "this weight")
        return rank
    if rank == 1.0:
        return sigma.numel()
    energy = sigma.double().square().cumsum(0)
    return int((energy < rank * energy[-1]).sum()) + 1


def check_rank(rank: Rank) -> None:
    """Raise `ConfigError` unless `rank` is an int ≥ 1 or a float in (0, 1]."""
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise ConfigError(f"rank must be an int or a float, got {rank!r}")
    if isinstance(rank, int) and rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}")
    if isinstance(rank, float) and not 0.0 < rank <= 1.0:
        raise ConfigError(
            f"a float rank is an energy fraction in (0, 1], got {rank}; "
            f"for a fixed number of singular values pass an int"
        )


def check_rank_fits(rank: int, full: int, owner: str) -> None:
    """Raise `ConfigError` if `rank` exceeds the `full` number of singular values of `owner`."""
    if rank > full:
        raise ConfigError(
            f"rank {rank} exceeds the {full} singular values of {owner}; use at most {full}, or a "
            f"fraction such as 1.0 (all) or 0.99 (99 % of the energy)"
        )


def parse_rank(text: str) -> Rank:
    """Read a rank as users type it: `16` is a number of values, `0.99` or `1.0` a fraction.

    Raises:
        ConfigError: neither, or out of range.
    """
    try:
        rank: Rank = int(text)
    except ValueError:
        try:
            rank = float(text)
        except ValueError:
            raise ConfigError(
                f"rank must be an integer such as 16 or a fraction such as 0.99, got {text!r}"
            ) from None
    check_rank(rank)
    return rank


def shift_matrix(basis: Basis, delta: Tensor) -> Tensor:
    """`U diag(δ) Vᵀ`, `(d_out, d_in)` float32, of the shift `delta` `(r,)`, r ≤ basis rank.

    Differentiable in `delta`: `∂L/∂δᵢ = uᵢᵀ G vᵢ` for the matrix gradient `G`.
    """
    basis = basis.truncated(delta.numel())
    # Products of float32 inputs would be rounded to half precision inside an autocast region.
    with torch.autocast(delta.device.type, enabled=False):
        # Cast and laid out in one pass, cast and scaled in another: a product reads rows.
        u = basis.u.mT.to(torch.float32, memory_format=torch.contiguous_format)
        return multiply(u, (basis.v * delta.float()[:, None]).float())


def shifted_weight(weight: Tensor, basis: Basis, delta: Tensor) -> Tensor:
    """`W' = W + U diag(δ) Vᵀ` in the shape and dtype of `weight`; equal to `W` at δ = 0."""
    shift = shift_matrix(basis, delta).reshape(weight.shape)
    precise = shift.to(torch.promote_types(weight.dtype, torch.float32))
    return precise.add_(weight).to(weight.dtype)


def merging_is_cheaper(
    tokens: int, d_out: int, d_in: int, rank: int, one_sided: bool = False
) -> bool:
    """Whether one training step costs less through `W'` than through the factors.

    Counts the multiply-adds that forward and backward add to the frozen layer:

    - factored: `2 N r (d_in + d_out)`, two products in either direction; by one side of the basis
      `4 N r min(d_in, d_out)`;
    - merged: `N d_in d_out` for `G = gᵀx` and `3 r d_in d_out` for building `W'` twice and
      projecting `G` back on the basis, with `min(d_in, d_out)` added to r by one side.

    Args:
        tokens: N, the number of vectors that pass through the projection (batch × positions).
        d_out: outputs.
        d_in: inputs.
        rank: r, of the shift.
        one_sided: whether the basis is a `OneSidedBasis` with a head.
    """
    short = min(d_in, d_out)
    factored = 2 * tokens * rank * (2 * short if one_sided else d_in + d_out)
    merged = (tokens + 3 * (rank + short * one_sided)) * d_in * d_out
    return merged < factored


Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(x, weight, bias) -> y`: a linear map or a convolution with its stride and padding."""


def factored_shift(
    project: Project, x: Tensor, basis: Basis, delta: Tensor, kernel: torch.Size
) -> Tensor:
    """`U(δ ⊙ Vᵀx)`, the change of a projection's output, without forming a matrix.

    `δ` multiplies in float32, so its gradient `Σ (g·uᵢ) zᵢ` is summed in float32 under half
    precision too.

    Args:
        project: the layer's own map, so that strides and padding are the layer's.
        x: layer input.
        basis: at least `delta.numel()` triplets.
        delta: `(r,)` float32.
        kernel: the weight's shape past `out`: `(in,)` or `(in, *kernel)`.
    """
    rank = delta.numel()
    basis = basis.truncated(rank).to(x.device, x.dtype)
    spatial = len(kernel) - 1
    z = project(x, basis.v.reshape(rank, *kernel), None)
    scaled = (z * delta.reshape(-1, *[1] * spatial)).to(z.dtype)
    # Back along the channels: a matrix product for tokens, a 1×1 convolution for maps.
    u = basis.u.mT
    if not spatial:
        return torch.nn.functional.linear(scaled, u)
    point_convolution: Any = (
        torch.nn.functional.conv1d,
        torch.nn.functional.conv2d,
        torch.nn.functional.conv3d,
    )[spatial - 1]
    return point_convolution(scaled, u.reshape(*u.shape, *[1] * spatial))


def row_weights_are_cheaper(tokens: int, d_out: int, d_in: int) -> bool:
    """Whether a batch with an adapter per row runs better through a `W'` of each than factored.

    Factored, every call adds `N r (d_in + d_out)` multiply-adds to a row and needs no memory.
    Building a row's `W'` takes `r d_in d_out` once, after which calls cost what the frozen layer
    costs. So `W'` is built where that costs no more than a single factored call; it is then no
    larger than the layer's input and output for that row either. In Stable Diffusion 1.5 at 512
    pixels these are the layers of 320 and 640 channels.

    Args:
        tokens: N, the number of vectors of one row that pass through the projection.
    """
    return d_in * d_out <= tokens * (d_in + d_out)


def factored_rows(
    project: Project,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: Basis,
    deltas: Tensor,
) -> Tensor:
    """`W x + b + U(δ_row ⊙ Vᵀx)`: a projection with a shift of its own in every row.

    Args:
        project: the layer's own map, so that strides and padding are the layer's; ungrouped.
        x: layer input `(rows, …, d_in)`, or `(rows, channels, *size)` of a convolution.
        weight: `(out, in, *kernel)`.
        bias: `(out,)` or None.
        basis: at least r triplets, in the layer's dtype.
        deltas: `(rows, r)` float32, shorter shifts padded with zeros.
    """
    rows, rank = deltas.shape
    basis = basis.truncated(rank)
    z = project(x, basis.v.reshape(rank, *weight.shape[1:]), None)
    y = project(x, weight, bias)
    u = basis.u.to(z.dtype)  # which autocast may have lowered
    # Both are ours alone, so in place: large maps are passed over once less.
    if weight.dim() == 2:
        z.mul_(deltas.reshape(rows, *[1] * (x.dim() - 2), rank))
        y.view(-1, y.shape[-1]).addmm_(z.view(-1, rank), u)
        return y
    z.mul_(deltas.reshape(rows, rank, *[1] * (weight.dim() - 2)))
    return y.add_(torch.bmm(u.mT.expand(rows, -1, -1), z.flatten(2)).reshape(y.shape))


def project_rows(
    project: Project, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None
) -> Tensor:
    """A projection with a weight of its own in every row; shapes as in `factored_rows`."""
    if weights[0].dim() == 2:
        tokens = x.reshape(len(weights), -1, x.shape[-1])
        stacked = torch.stack([*weights]).mT
        y = torch.bmm(tokens, stacked) if bias is None else torch.baddbmm(bias, tokens, stacked)
        return y.reshape(*x.shape[:-1], -1)
    # Measured as fast as one grouped convolution or faster, and right for any padding and groups.
    rows = [project(row, weight, bias) for row, weight in zip(x.split(1), weights, strict=True)]
    return torch.cat(rows)


def pad_sum(vectors: list[tuple[float, Tensor]]) -> Tensor:
    """`Σ wᵢ vᵢ` of weighted vectors of different lengths, zero-padded at the end.

    Shifts of several adapters on one basis add up to one shift (DESIGN section 1, point 2).
    """
    length = max(vector.numel() for _, vector in vectors)
    terms = [
        torch.nn.functional.pad(vector * weight, (0, length - vector.numel()))
        if weight != 1 or vector.numel() < length
        else vector
        for weight, vector in vectors
    ]
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)
