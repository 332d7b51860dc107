"""Shifts of singular values as changes of weights and of outputs.

A frozen weight `W = U diag(σ) Vᵀ` is adapted by training a shift `δ` of its leading singular
values (SVFit, arXiv 2409.05926, section 3): `W' = W + U_r diag(δ) V_rᵀ`. Written that way `W'`
is `W` to the last bit at `δ = 0`, whatever the precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.products import multiply

Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(x, weight, bias) -> y`: a linear map or a convolution with its stride and padding."""


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
    """`W' = W + U diag(δ) Vᵀ` in the shape, dtype and memory layout of `weight`; equal to `W` at
    δ = 0.
    """
    shift = shift_matrix(basis, delta).reshape(weight.shape)
    # The first of two summands gives the layout.
    return torch.add(weight, shift).to(weight.dtype)


def shifted_weights(weight: Tensor, basis: Basis, deltas: Tensor) -> Tensor:
    """`W'` of several shifts of one linear layer, in its dtype, as one product.

    Args:
        weight: `(d_out, d_in)`.
        basis: at least r triplets.
        deltas: `(n, r)`, shorter shifts padded with zeros; those of zeros give `W` to the last bit.

    Returns:
        `(n, d_in, d_out)`, each transposed, as products of many rows read them fastest.
    """
    (count, rank), (d_out, d_in) = deltas.shape, weight.shape
    basis = basis.truncated(rank)
    with torch.autocast(deltas.device.type, enabled=False):  # as in `shift_matrix`
        v = basis.v.mT.float() * deltas.float()[:, None]
        shifts = multiply(v.reshape(count * d_in, rank), basis.u.float())
        return shifts.view(count, d_in, d_out).add_(weight.mT).to(weight.dtype)


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


def factored_shift(
    project: Project, x: Tensor, basis: Basis, delta: Tensor, kernel: torch.Size
) -> Tensor:
    """`U(δ ⊙ Vᵀx)`, the change of a projection's output, without forming a matrix.

    `δ` multiplies in float32, so its gradient `Σ (g·uᵢ) zᵢ` is summed in float32 under half
    precision too.

    Args:
        project: the layer's own map, so that strides and padding are the layer's.
        x: layer input.
        basis: at least r triplets.
        delta: `(r,)` float32; under a convolution also `(rows, r)`, a shift for each row of `x`.
        kernel: the weight's shape past `out`: `(in,)` or `(in, *kernel)`.
    """
    rank = delta.shape[-1]
    basis = basis.truncated(rank).to(x.device, x.dtype)
    spatial = len(kernel) - 1
    z = project(x, basis.v.reshape(rank, *kernel), None)
    scaled = (z * delta.reshape(*delta.shape, *[1] * spatial)).to(z.dtype)
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
