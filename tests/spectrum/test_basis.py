"""Which weights have a basis."""

from __future__ import annotations

import math

import pytest
import torch

from svfit_diffusion.errors import BasisError
from svfit_diffusion.spectrum.basis import canonical_weight


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 65520.0, -1e6])
def test_weights_beyond_float16_have_no_basis(bad: float) -> None:
    weight = torch.ones(4, 4)
    weight[2, 1] = bad
    with pytest.raises(BasisError, match="NaN, infinity"):
        canonical_weight(weight)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_real_floats_have_no_basis(dtype: torch.dtype) -> None:
    with pytest.raises(BasisError, match="unquantised"):
        canonical_weight(torch.ones(4, 4).to(dtype))
