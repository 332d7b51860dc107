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

from svfit_diffusion.files.mapped import MappedFile
from svfit_diffusion.spectrum.merged import Merged
from svfit_diffusion.spectrum.one_sided import (
    OneSidedBasis,
    head_and_tail,
    inputs_are_shorter,
    vectors_in_use,
)
from svfit_diffusion.spectrum.products import add_product, multiply, multiply_transposed

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
        return _in_one_precision(Merged, x, delta, weight, bias, basis)
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
    # A compiled graph knows of tensors only.
    file = None if torch.compiler.is_compiling() else basis.file
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        y: Tensor = function.apply(x, delta, weight, bias, *vectors, file)
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
        file: MappedFile | None,
    ) -> Tensor:
        ctx.file = file
        vectors, others = vectors_in_use(near, far, x.dtype, file)
        z = multiply_transposed(_rows(x), vectors)
        ctx.keeps_input = far.shape[0] < near.shape[0] and near.shape[1] < _WIDE
        kept = x if ctx.keeps_input else z
        ctx.save_for_backward(kept, delta, weight, near, far, inverse)
        head, tail = _scaled(z, delta * inverse).to(x.dtype).split(head_and_tail(near, far), dim=1)
        y = linear(_plus(x, head, vectors), weight, bias)
        add_product(y.view(-1, y.shape[-1]), tail, others)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, delta, weight, near, far, inverse = ctx.saved_tensors
        near, far = vectors_in_use(near, far, kept.dtype, ctx.file)
        z = multiply_transposed(_rows(kept), near) if ctx.keeps_input else kept
        g = _rows(gradient)
        gx = multiply(g, weight)
        gz = _gather(gx, g, near, far)
        delta_gradient = _summed(gz, z, delta) * inverse
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, *[None] * 6
        add_product(gx, _scaled(gz, delta * inverse).to(gx.dtype), near)
        return gx.view(*gradient.shape[:-1], weight.shape[1]), delta_gradient, *[None] * 6


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
        file: MappedFile | None,
    ) -> Tensor:
        ctx.file = file
        vectors, others = vectors_in_use(near, far, x.dtype, file)
        # The frozen layer's own product: the same bits wherever the shift is zero.
        y = linear(x, weight, bias)
        unbiased = _rows(y if bias is None else y - bias)
        z = _gather(unbiased, _rows(x), vectors, others)
        ctx.save_for_backward(z, delta, weight, near, far, inverse)
        add_product(y.view(-1, y.shape[-1]), _scaled(z, delta * inverse).to(y.dtype), vectors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, delta, weight, near, far, inverse = ctx.saved_tensors
        near, far = vectors_in_use(near, far, z.dtype, ctx.file)
        gz = multiply_transposed(_rows(gradient), near)
        delta_gradient = _summed(gz, z, delta) * inverse
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, *[None] * 6
        coefficients = _scaled(gz, delta * inverse).to(gradient.dtype)
        head, tail = coefficients.split(head_and_tail(near, far), dim=1)
        gx = multiply(_rows(_plus(gradient, head, near)), weight)
        add_product(gx, tail, far)
        return gx.view(*gradient.shape[:-1], weight.shape[1]), delta_gradient, *[None] * 6


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _gather(near_side: Tensor, far_side: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Coefficients `(N, r)` of triplets: of the head by the shorter side, of the tail by the other.

    The scale of the head's is that of σ times the coefficients by the other side.
    """
    head, tail = head_and_tail(near, far)
    parts = []
    if head:
        parts.append(multiply_transposed(near_side, near[:head]))
    if tail:
        parts.append(multiply_transposed(far_side, far))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _plus(near_side: Tensor, coefficients: Tensor, near: Tensor) -> Tensor:
    """`near_side` plus the vectors of the head, by coefficients `(N, head)`."""
    if not coefficients.shape[1]:
        return near_side
    return near_side + multiply(coefficients, near[: coefficients.shape[1]]).view_as(near_side)


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
