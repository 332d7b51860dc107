"""Projections with another shift in every row of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.shift import Project

_SMALL = 256 * 256
"""Values of a weight; `python -m benchmarks.serving`, 2 Xeon cores: 16 rows of 16 tokens and 192
channels take 1.5 times the frozen layer's time so, and 2.8 to 3.4 times factored."""


def row_weights_are_cheaper(tokens: int, d_out: int, d_in: int) -> bool:
    """Whether a batch with an adapter per row runs better through a `W'` of each than factored.

    Factored, every call adds `N r (d_in + d_out)` multiply-adds to a row and needs no memory.
    Building a row's `W'` takes `r d_in d_out` once, after which calls cost what the frozen layer
    costs. So `W'` is built where that costs no more than a single factored call; it is then no
    larger than the layer's input and output for that row either. In Stable Diffusion 1.5 at 512
    pixels these are the layers of 320 and 640 channels. Small weights are built however few the
    tokens: they need no memory to speak of, and a drawing calls them often.

    Args:
        tokens: N, the number of vectors of one row that pass through the projection.
    """
    return d_in * d_out <= max(_SMALL, tokens * (d_in + d_out))


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
    """A projection with a weight of its own in every row, or in each of as many equal parts of the
    rows as there are weights; shapes as in `factored_rows`.
    """
    if weights[0].dim() == 2:
        return project_parts(x, torch.stack([*weights]).mT, bias)
    # Measured as fast as one grouped convolution or faster, and right for any padding and groups.
    parts = x.chunk(len(weights))
    return torch.cat([project(p, weight, bias) for p, weight in zip(parts, weights, strict=True)])


def project_parts(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """A linear projection with a weight of its own in each of as many equal parts of the rows as
    there are weights.

    Args:
        x: layer input `(rows, …, d_in)`.
        weights: `(parts, d_in, d_out)`, each transposed.
        bias: `(d_out,)` or None.
    """
    tokens = x.reshape(len(weights), -1, x.shape[-1])
    y = torch.bmm(tokens, weights) if bias is None else torch.baddbmm(bias, tokens, weights)
    return y.reshape(*x.shape[:-1], -1)
