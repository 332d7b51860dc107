"""How far the float32 projections are from a dense float64 `W + U diag(δ) Vᵀ` and its autograd.

    python -m benchmarks.gradient_exactness

Each layer runs forward and backward the factored way, the merged way, and, for scale, as plain
float32 autograd through the dense matrix. Linear layers run with both sides of the basis, as small
ones are trained, and with one, as large ones are, where the float16 rounding of the weight that the
basis belongs to shows. Relative errors are maxima over the largest true value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.report import Row, print_table, write_report
from svfit_diffusion.adapters import live
from svfit_diffusion.adapters.layers import Shiftable, ShiftedLayer
from svfit_diffusion.adapters.live import LiveProjection
from svfit_diffusion.spectrum import one_sided, solver
from svfit_diffusion.spectrum.basis import Basis, canonical_weight

WAYS = ("factored", "merged", "factored, one side", "merged, one side", "dense autograd")


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input."""

    name: str
    layer: Shiftable
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """One forward and backward pass, in float64."""

    output: Tensor
    delta_gradient: Tensor
    input_gradient: Tensor

    @classmethod
    def of(cls, output: Tensor, delta: Tensor, x: Tensor, seed_gradient: Tensor) -> Outcome:
        """Run the backward pass from `seed_gradient`."""
        gradients = torch.autograd.grad(output, (delta, x), seed_gradient)
        return cls(output.detach().double(), *(gradient.double() for gradient in gradients))


def make_cases() -> list[Case]:
    """Linear and convolution layers of Stable Diffusion 1.5, for few and many positions."""
    return [
        Case("Linear 320→320, 77 tokens", nn.Linear(320, 320), (1, 77, 320)),
        Case("Linear 320→320, 8192 tokens", nn.Linear(320, 320), (2, 4096, 320)),
        Case("Linear 768→1280, 77 tokens", nn.Linear(768, 1280), (1, 77, 768)),
        Case("Linear 768→1280, 4096 tokens", nn.Linear(768, 1280), (1, 4096, 768)),
        Case("Conv2d 3×3 128→128, 32×32", nn.Conv2d(128, 128, 3, padding=1), (2, 128, 32, 32)),
        Case(
            "Conv2d 3×3 stride 2 128→128, 32×32",
            nn.Conv2d(128, 128, 3, stride=2, padding=1),
            (2, 128, 32, 32),
        ),
    ]


def measure(case: Case) -> list[Row]:
    """Errors of each way against the dense float64 computation."""
    layer = case.layer.requires_grad_(False)
    basis = solver.singular_basis(canonical_weight(layer.weight))
    delta = 0.05 * basis.sigma.mean() * torch.randn(basis.rank)
    x = torch.randn(case.input_shape)
    with torch.no_grad():
        seed_gradient = torch.randn_like(layer(x))
    truth = _dense(layer, basis, delta, x, seed_gradient, torch.float64)
    rows = []
    for way in WAYS:
        if way == "dense autograd":
            found = _dense(layer, basis, delta, x, seed_gradient, torch.float32)
        else:
            found = _shifted(layer, basis, delta, x, seed_gradient, way)
        row: Row = {"case": case.name, "way": way}
        for name, value in vars(truth).items():
            error = float((getattr(found, name) - value).abs().max())
            row[f"{name}_absolute"] = error
            row[f"{name}_relative"] = error / float(value.abs().max())
        rows.append(row)
    return rows


def _shifted(
    layer: Shiftable, basis: Basis, delta: Tensor, x: Tensor, seed_gradient: Tensor, way: str
) -> Outcome:
    """Through the package's projection, one way enforced."""
    shifted = ShiftedLayer(layer, basis)
    parameter = nn.Parameter(delta.clone())
    shifted.add("subject", parameter)
    small = 0 if way.endswith("one side") else layer.weight.numel()
    with patch.object(one_sided, "_SMALL", small):
        projection = LiveProjection(shifted, {"subject": 1.0})
    x = x.clone().requires_grad_()
    with patch.object(live, "merging_is_cheaper", lambda *_: way.startswith("merged")):
        return Outcome.of(projection.forward(x), parameter, x, seed_gradient)


def _dense(
    layer: Shiftable,
    basis: Basis,
    delta: Tensor,
    x: Tensor,
    seed_gradient: Tensor,
    dtype: torch.dtype,
) -> Outcome:
    """Autograd through the dense matrix, in a precision of choice."""
    delta = delta.to(dtype).requires_grad_()
    x = x.to(dtype).requires_grad_()
    shift = (basis.u.to(dtype).mT * delta) @ basis.v.to(dtype)
    weight = layer.weight.to(dtype) + shift.reshape(layer.weight.shape)
    bias: Any = layer.bias
    parameters = {"weight": weight, "bias": bias.to(dtype)}
    output = torch.func.functional_call(layer, parameters, (x,))
    return Outcome.of(output, delta, x, seed_gradient.to(dtype))


def main() -> None:
    """Measure, print, write."""
    torch.manual_seed(0)
    rows = [row for case in make_cases() for row in measure(case)]
    quantities = ("output", "delta_gradient")
    errors = [f"{quantity}_{kind}" for quantity in quantities for kind in ("absolute", "relative")]
    print_table(rows, ["case", "way", *errors])
    print(write_report("gradient_exactness", rows))


if __name__ == "__main__":
    main()
