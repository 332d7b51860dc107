"""Linear maps with shifted singular values: forward and backward passes that keep the least.

Both ways compute `y = (W + U diag(δ) Vᵀ) x + b` (SVFit, arXiv 2409.05926, section 3) and the
gradients in `x` and `δ`; autograd would keep float32 copies of the basis and more than it needs.
`spectral.merging_is_cheaper` tells which way costs less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from svfit_diffusion.products import multiply, multiply_transposed
from svfit_diffusion.spectral import Basis


def factored_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, basis: Basis, delta: Tensor
) -> Tensor:
    """`W x + b + U(δ ⊙ Vᵀx)`; keeps `z = Vᵀx` for the backward pass.

    `δ` multiplies in float32, so its gradient `Σ (g·uᵢ) zᵢ` is summed in float32 under half
    precision too. Equal to the frozen layer to the last bit at `δ = 0`.

    Args:
        x: `(…, d_in)`.
        weight: `(d_out, d_in)`, frozen.
        bias: `(d_out,)`, frozen.
        basis: at least `delta.numel()` triplets; its vectors are cast to the layer's precision.
        delta: `(r,)` float32.
    """
    return _in_one_precision(_Factored, x, delta, weight, bias, basis)


def merged_linear(
    x: Tensor, merged: Tensor, bias: Tensor | None, basis: Basis, delta: Tensor
) -> Tensor:
    """`W' x + b` with a `W'` built before from this very `delta`; keeps `x` and `W'`.

    The gradient is `∂L/∂δᵢ = uᵢᵀ G vᵢ` with `G = gᵀx`.

    Args:
        x: `(…, d_in)`.
        merged: `W' = W + U diag(δ) Vᵀ`, `(d_out, d_in)`.
        bias: `(d_out,)`, frozen.
        basis: at least `delta.numel()` triplets.
        delta: `(r,)` float32.
    """
    return _in_one_precision(_Merged, x, delta, merged, bias, basis)


def _in_one_precision(
    function: Any, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, basis: Basis
) -> Tensor:
    """Apply an autograd function with the casts that autocast would make of a linear layer."""
    basis = basis.truncated(delta.numel())
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        y: Tensor = function.apply(x, delta, weight, bias, basis.u, basis.v)
    return y


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        u: Tensor,
        v: Tensor,
    ) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        z = multiply_transposed(tokens, v.to(x.dtype))
        ctx.save_for_backward(z, delta, weight, u, v)
        scaled = (z * delta).to(z.dtype)
        # The frozen layer's own product: the same bits wherever the shift is zero.
        y = linear(x, weight, bias)
        return y.add_(multiply(scaled, u.to(x.dtype)).view_as(y))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, delta, weight, u, v = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        gz = multiply_transposed(g, u.to(g.dtype))
        delta_gradient = torch.linalg.vecdot(gz.to(delta.dtype), z.to(delta.dtype), dim=0)
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, None, None, None, None
        gx = multiply(g, weight)
        gx += multiply((gz * delta).to(g.dtype), v.to(g.dtype))
        shape = (*gradient.shape[:-1], weight.shape[1])
        return gx.view(shape), delta_gradient, None, None, None, None


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        merged: Tensor,
        bias: Tensor | None,
        u: Tensor,
        v: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, delta, merged, u, v)
        return linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, merged, u, v = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        outer = multiply(g.mT, x.reshape(-1, x.shape[-1])).to(delta.dtype)
        rotated = multiply(u.to(delta.dtype), outer)
        delta_gradient = torch.linalg.vecdot(rotated, v.to(delta.dtype))
        if not ctx.needs_input_grad[0]:
            return None, delta_gradient, None, None, None, None
        return multiply(g, merged).view_as(x), delta_gradient, None, None, None, None
