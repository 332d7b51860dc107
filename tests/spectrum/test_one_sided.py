"""Vectors of a file while they are trained: in memory only where a pass needs them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svfit_diffusion.files.mapped import MappedFile
from svfit_diffusion.spectrum.basis_file import basis_path, read_basis, write_basis
from svfit_diffusion.spectrum.linear import factored_linear, merged_linear
from svfit_diffusion.spectrum.one_sided import OneSidedBasis, one_sided
from svfit_diffusion.spectrum.solver import singular_basis

DIGEST = "0" * 64


@pytest.fixture(params=[(300, 280), (280, 300)], ids=["of inputs", "of outputs"])
def weight(request: pytest.FixtureRequest) -> Tensor:
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0)) / 17


@pytest.fixture
def mapped(weight: Tensor, tmp_path: Path) -> OneSidedBasis:
    basis = singular_basis(weight).to(torch.device("cpu"), torch.float16)
    write_basis(tmp_path, DIGEST, basis)
    return one_sided(read_basis(basis_path(tmp_path, DIGEST), DIGEST))


@pytest.mark.parametrize("linear", [factored_linear, merged_linear])
def test_a_file_is_released_in_either_pass(
    linear: Callable[..., Tensor],
    weight: Tensor,
    mapped: OneSidedBasis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[MappedFile] = []
    release = MappedFile.release

    def noted(file: MappedFile) -> None:
        released.append(file)
        release(file)

    monkeypatch.setattr(MappedFile, "release", noted)
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
    results = []
    for basis in (mapped, replace(mapped, near=mapped.near.clone(), file=None)):
        delta = torch.linspace(-0.1, 0.1, 280).requires_grad_()
        y = linear(x.requires_grad_(), weight, None, basis, delta)
        assert len(released) == (basis is mapped)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (delta, x))))
        assert len(released) == 2 * (basis is mapped)
        assert all(file is mapped.file for file in released)
        released.clear()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_copies_need_no_file(mapped: OneSidedBasis) -> None:
    assert copy.deepcopy(mapped) is mapped
    assert mapped.to(torch.device("meta")).file is None
    loaded = pickle.loads(pickle.dumps(mapped))
    assert loaded.file is None
    assert torch.equal(loaded.near, mapped.near)
    assert torch.equal(loaded.far, mapped.far)
