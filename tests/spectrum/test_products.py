"""Products through either library: the same numbers, whatever the strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svfit_diffusion.spectrum import products

# Relative to the largest entry; sums of at most 40 products of float32 numbers.
TOLERANCE = 1e-5


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "_WORTHWHILE", 0)
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: request.param)
    return bool(request.param)


def matrix(rows: int, columns: int, seed: int, layout: str) -> Tensor:
    """A random matrix that is contiguous, transposed or a slice of a larger one."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "transposed":
        return torch.randn(columns, rows, generator=generator).mT
    if layout == "sliced":
        return torch.randn(2 * rows, columns + 3, generator=generator)[::2, 1 : columns + 1]
    return torch.randn(rows, columns, generator=generator)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("layout_b", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("layout_a", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("shape", [(7, 40, 5), (1, 40, 33), (19, 1, 3), (4, 4, 1)])
def test_products_match_float64(shape: tuple[int, int, int], layout_a: str, layout_b: str) -> None:
    n, k, m = shape
    a = matrix(n, k, 0, layout_a)
    b, b_transposed = matrix(k, m, 1, layout_b), matrix(m, k, 2, layout_b)
    for actual, expected in (
        (products.multiply(a, b), a.double() @ b.double()),
        (products.multiply_transposed(a, b_transposed), a.double() @ b_transposed.double().mT),
    ):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.usefixtures("library")
def test_other_precisions_keep_theirs(dtype: torch.dtype) -> None:
    a = torch.randn(3, 4).to(dtype)
    assert products.multiply(a, a.mT).dtype == dtype
    assert torch.equal(products.multiply_transposed(a, a), a @ a.mT)


def test_gradients_pass_through(library: bool) -> None:
    a = torch.randn(5, 6, requires_grad=True)
    b = torch.randn(6, 4)
    (gradient,) = torch.autograd.grad(products.multiply(a, b).square().sum(), a)
    (expected,) = torch.autograd.grad((a @ b).square().sum(), a)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("inner", [0, 3])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_product_is_added_in_place(inner: int, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, a, b = (
        torch.randn(n, m, generator=generator) for n, m in ((4, 5), (4, inner), (inner, 5))
    )
    expected = base + a @ b
    base, a, b = base.to(device), a.to(device), b.to(device)
    assert products.add_product(base, a, b) is base
    if device == "cpu":
        torch.testing.assert_close(base, expected)  # float32, one product
