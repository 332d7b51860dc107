"""Linear maps with shifted singular values: forward and backward passes that keep the least.

Both ways compute `y = (W + U diag(δ) Vᵀ) x + b` (SVFit, arXiv 2409.05926, section 3) and the
gradients in `x` and `δ`. Beside frozen tensors they keep one: `x`, which neighbours keep too, or
the coefficients of the singular vectors; autograd would keep float32 copies of the basis as well.
`shift.merging_is_cheaper` tells which way costs less. Equal parts of a batch may have a shift each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from svfit_diffusion.spectrum.one_sided import OneSidedBasis, inputs_are_shorter
from svfit_diffusion.spectrum.products import multiply, multiply_transposed

_WIDE = 1024
"""Inputs from which on coefficients are kept instead of computed again from `x`, as they are for
small weights: what that costs for each byte grows with the width.
"""


def factored_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, basis: OneSidedBasis, delta: Tensor
) -> Tensor:
    """`W (x + V(δ/σ ⊙ Vᵀx)) + b`, or `W x + U(δ/σ ⊙ UᵀW x) + b` if outputs are the shorter side.

    Triplets of small σ are added as `U(δ ⊙ Vᵀx)`. `δ` multiplies in float32, so its gradient is
    summed in float32 under half precision too. Equal to the frozen layer to the last bit at
    `δ = 0`; for that `UᵀW x` is taken from `W x + b` less `b`, and has lost what `b` hides of it
    where it is far larger than σ.

    Args:
        x: `(…, d_in)`.
        weight: `(d_out, d_in)`, frozen.
        bias: `(d_out,)`, frozen.
        basis: at least r triplets; its vectors are cast to the layer's precision.
        delta: `(r,)` float32, or `(parts, r)` of as many equal parts of the batch, in order.
    """
    function = _FromInput if inputs_are_shorter(*weight.shape) else _FromOutput
    return _in_one_precision(function, x, delta, weight, bias, basis)


def merged_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, basis: OneSidedBasis, delta: Tensor
) -> Tensor:
    """`W' x + b` with `W' = W + W V diag(δ/σ) Vᵀ`, or `W + U diag(δ/σ) UᵀW` if outputs are the
    shorter side, and `U diag(δ) Vᵀ` for small σ. `W'` is built for either direction and not kept.

    The gradient is `∂L/∂δᵢ = uᵢᵀ G vᵢ` with `G = gᵀx`.

    Args:
        x: `(…, d_in)`.
        weight: `(d_out, d_in)`, frozen.
        bias: `(d_out,)`, frozen.
        basis: at least r triplets.
        delta: `(r,)` float32, or `(parts, r)` as in `factored_linear`; the `W'` of parts are built
            one after the other.
    """
    if delta.dim() == 1:
        return _in_one_precision(_Merged, x, delta, weight, bias, basis)
    parts = x.reshape(len(delta), -1, x.shape[-1])
    outputs = [
        merged_linear(part, weight, bias, basis, own)
        for part, own in zip(parts, delta, strict=True)
    ]
    return torch.stack(outputs).view(*x.shape[:-1], -1)


def _in_one_precision(
    function: Any,
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: OneSidedBasis,
) -> Tensor:
    """Apply an autograd function with the casts that autocast would make of a linear layer."""
    basis = basis.truncated(delta.shape[-1])
    vectors = basis.near, basis.far, basis.inverse
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        y: Tensor = function.apply(x, delta, weight, bias, *vectors)
    return y


class _FromInput(torch.autograd.Function):
    """Factored, with the vectors on the side of the inputs."""

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
    ) -> Tensor:
        vectors = near.to(x.dtype)
        z = multiply_transposed(_rows(x), vectors)
        ctx.keeps_input = len(far) < len(near) and near.shape[1] < _WIDE
        kept = x if ctx.keeps_input else z
        ctx.save_for_backward(kept, delta, weight, near, far, inverse)
        moved, rest = _spread(x, _scaled(z, delta * inverse), vectors, far)
        y = linear(moved, weight, bias)
        return y if rest is None else y.add_(rest.view_as(y))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, delta, weight, near, far, inverse = ctx.saved_tensors
        near = near.to(kept.dtype)
        z = multiply_transposed(_rows(kept), near) if ctx.keeps_input else kept
        g = _rows(gradient)
        gx = multiply(g, weight)
        gz = _gather(gx, g, near, far)
        delta_gradient = _summed(gz, z, delta) * inverse
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, *[None] * 5
        gx += multiply(_scaled(gz, delta * inverse).to(gx.dtype), near)
        return gx.view(*gradient.shape[:-1], weight.shape[1]), delta_gradient, *[None] * 5


class _FromOutput(torch.autograd.Function):
    """Factored, with the vectors on the side of the outputs; passes change their parts."""

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
    ) -> Tensor:
        vectors = near.to(x.dtype)
        # The frozen layer's own product: the same bits wherever the shift is zero.
        y = linear(x, weight, bias)
        unbiased = _rows(y if bias is None else y - bias)
        z = _gather(unbiased, _rows(x), vectors, far)
        ctx.save_for_backward(z, delta, weight, near, far, inverse)
        return y.add_(multiply(_scaled(z, delta * inverse).to(y.dtype), vectors).view_as(y))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, delta, weight, near, far, inverse = ctx.saved_tensors
        near = near.to(z.dtype)
        gz = multiply_transposed(_rows(gradient), near)
        delta_gradient = _summed(gz, z, delta) * inverse
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, *[None] * 5
        moved, rest = _spread(gradient, _scaled(gz, delta * inverse), near, far)
        gx = multiply(_rows(moved), weight)
        if rest is not None:
            gx += rest
        return gx.view(*gradient.shape[:-1], weight.shape[1]), delta_gradient, *[None] * 5


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _gather(near_side: Tensor, far_side: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Coefficients `(N, r)` of triplets: of the head by the shorter side, of the tail by the other.

    The scale of the head's is that of σ times the coefficients by the other side.
    """
    head = len(near) - len(far)
    parts = []
    if head:
        parts.append(multiply_transposed(near_side, near[:head]))
    if len(far):
        parts.append(multiply_transposed(far_side, far.to(far_side.dtype)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _spread(
    near_side: Tensor, coefficients: Tensor, near: Tensor, far: Tensor
) -> tuple[Tensor, Tensor | None]:
    """`near_side` plus the head's vectors, and what the tail's add on the other side, if any."""
    head = len(near) - len(far)
    coefficients = coefficients.to(near_side.dtype)
    if head:
        near_side = near_side + multiply(coefficients[:, :head], near[:head]).view_as(near_side)
    rest = multiply(coefficients[:, head:], far.to(near_side.dtype)) if len(far) else None
    return near_side, rest


def _scaled(coefficients: Tensor, scale: Tensor) -> Tensor:
    """Coefficients `(N, r)` times a scale `(r,)`, or `(parts, r)` for equal parts of the N."""
    return (_parted(coefficients, scale) * scale.unsqueeze(-2)).reshape(coefficients.shape)


def _summed(gz: Tensor, z: Tensor, delta: Tensor) -> Tensor:
    """The gradient in δ, as δ is shaped, the head's times σ: `Σ_n gz z`, by columns, in float32 at
    least.
    """
    precise = delta.dtype
    return torch.linalg.vecdot(
        _parted(gz.to(precise), delta), _parted(z.to(precise), delta), dim=-2
    )


def _parted(coefficients: Tensor, like: Tensor) -> Tensor:
    """`(N, r)` as `(parts, N / parts, r)` where `like` is `(parts, r)`."""
    return coefficients.reshape(*like.shape[:-1], -1, like.shape[-1])


class _Merged(torch.autograd.Function):
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
    ) -> Tensor:
        ctx.save_for_backward(x, delta, weight, near, far, inverse)
        return linear(x, _shifted_weight(weight, delta * inverse, near.float(), far), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, weight, near, far, inverse = ctx.saved_tensors
        near = near.float()
        g = _rows(gradient)
        outer = multiply(g.mT, _rows(x)).float()
        delta_gradient = _inner_products(weight, outer, near, far) * inverse
        gx = None
        if ctx.needs_input_grad[0]:
            # Built again and not kept: the W' of all layers take as much memory as their weights.
            merged = _shifted_weight(weight, delta * inverse, near, far)
            gx = multiply(g, merged).view_as(x)
        return gx, delta_gradient, *[None] * 5


def _shifted_weight(weight: Tensor, scale: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """`W'` by a one-sided basis, in the weight's dtype; the weight itself where `scale` is 0.

    Args:
        weight: `(d_out, d_in)`.
        scale: `(r,)` float32: δ/σ in the head, δ in the tail.
        near: `(r, min(d_in, d_out))` float32.
        far: `(r − head, max(d_in, d_out))`.
    """
    head, of_input = len(near) - len(far), inputs_are_shorter(*weight.shape)
    merged = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    scaled = near * scale[:, None]
    if head:
        turn = multiply(near[:head].mT.contiguous(), scaled[:head])
        exact = weight.float()
        merged += multiply(exact, turn) if of_input else multiply(turn, exact)
    if len(far):
        other = far.float()
        left, right = (other, scaled[head:]) if of_input else (scaled[head:], other)
        merged += multiply(left.mT.contiguous(), right)
    return merged.to(weight.dtype)


def _inner_products(weight: Tensor, outer: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """`uᵢᵀ G vᵢ`, `(r,)` float32, of `outer` `G`; in the head times σᵢ."""
    head, of_input = len(near) - len(far), inputs_are_shorter(*weight.shape)
    parts = []
    if head:
        exact = weight.float()
        turned = multiply(exact.mT, outer) if of_input else multiply_transposed(outer, exact)
        parts.append(torch.linalg.vecdot(multiply(near[:head], turned), near[:head]))
    if len(far):
        other = far.float()
        left, right = (other, near[head:]) if of_input else (near[head:], other)
        parts.append(torch.linalg.vecdot(multiply(left, outer), right))
    return torch.cat(parts)
