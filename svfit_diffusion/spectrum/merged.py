"""A linear map with shifted singular values by one matrix, which is not kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from svfit_diffusion.files.mapped import MappedFile
from svfit_diffusion.spectrum.one_sided import head_and_tail, inputs_are_shorter, vectors_in_use
from svfit_diffusion.spectrum.products import multiply, multiply_transposed


class Merged(torch.autograd.Function):
    """`W' x + b` by `W'`, built for either direction, and the gradients in x and δ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        near: Tensor,
        far: Tensor,
        inverse: Tensor,
        file: MappedFile | None,
    ) -> Tensor:
        ctx.file = file
        ctx.save_for_backward(x, delta, weight, near, far, inverse)
        near, far = vectors_in_use(near, far, torch.float32, file)
        return linear(x, _shifted_weight(weight, delta * inverse, near, far), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, weight, near, far, inverse = ctx.saved_tensors
        near, far = vectors_in_use(near, far, torch.float32, ctx.file)
        g = gradient.reshape(-1, gradient.shape[-1])
        outer = multiply(g.mT, x.reshape(-1, x.shape[-1])).float()
        delta_gradient = _inner_products(weight, outer, near, far) * inverse
        gx = None
        if ctx.needs_input_grad[0]:
            # Built again and not kept: the W' of all layers take as much memory as their weights.
            merged = _shifted_weight(weight, delta * inverse, near, far)
            gx = multiply(g, merged).view_as(x)
        return gx, delta_gradient, *[None] * 6


def _shifted_weight(weight: Tensor, scale: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """`W'` by a one-sided basis, in the weight's dtype; the weight itself where `scale` is 0.

    Args:
        weight: `(d_out, d_in)`.
        scale: `(r,)` float32: δ/σ in the head, δ in the tail.
        near: `(r, min(d_in, d_out))` float32.
        far: `(r − head, max(d_in, d_out))` float32.
    """
    (head, tail), of_input = head_and_tail(near, far), inputs_are_shorter(*weight.shape)
    merged = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    scaled = near * scale[:, None]
    if head:
        turn = multiply(near[:head].mT.contiguous(), scaled[:head])
        exact = weight.float()
        merged += multiply(exact, turn) if of_input else multiply(turn, exact)
    if tail:
        left, right = (far, scaled[head:]) if of_input else (scaled[head:], far)
        merged += multiply(left.mT.contiguous(), right)
    return merged.to(weight.dtype)


def _inner_products(weight: Tensor, outer: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """`uᵢᵀ G vᵢ`, `(r,)` float32, of `outer` `G`; in the head times σᵢ."""
    (head, tail), of_input = head_and_tail(near, far), inputs_are_shorter(*weight.shape)
    parts = []
    if head:
        exact = weight.float()
        turned = multiply(exact.mT, outer) if of_input else multiply_transposed(outer, exact)
        parts.append(torch.linalg.vecdot(multiply(near[:head], turned), near[:head]))
    if tail:
        left, right = (far, near[head:]) if of_input else (near[head:], far)
        parts.append(torch.linalg.vecdot(multiply(left, outer), right))
    return torch.cat(parts)
