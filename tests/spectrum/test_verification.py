"""Files of bases: damaged ones, forged ones, and ones that vanish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damages import DAMAGES
from torch import Tensor

from svfit_diffusion.spectrum import verification
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.basis_file import basis_path, read_basis, write_basis
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases, read_base
from svfit_diffusion.spectrum.stored import stored_bases
from svfit_diffusion.spectrum.verification import flaw, flaws


def make_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"square": (8, 8), "tall": (12, 8), "kernel": (6, 3, 3, 3)}
    weights = {name: torch.randn(s, generator=generator) for name, s in shapes.items()}
    return weights | {"zero": torch.zeros(4, 6)}


def make_base() -> BaseWeights:
    return read_base(make_weights())


@pytest.fixture
def folder(empty_cache: Path) -> Path:
    """A cache with the bases of `make_base()`."""
    load_bases(make_base(), show_progress=False)
    return empty_cache


def check(folder: Path, base: BaseWeights | None = None) -> dict[str, str]:
    found = flaws(stored_bases(folder), base, show_progress=False)
    return {file.digest: words for file, words in found.items()}


def forge(folder: Path, layer: str, change: Callable[[Basis], Basis]) -> str:
    """Write a layer's basis anew, with right names, probes and checksum; its digest."""
    digest = make_base().digests[layer]
    kept = read_basis(basis_path(folder, digest), digest)
    copy = Basis(kept.u.clone(), kept.v.clone(), kept.sigma.clone())
    write_basis(folder, digest, change(copy))
    return digest


def test_right_files_have_no_flaws(folder: Path) -> None:
    assert len(stored_bases(folder)) == 4
    assert check(folder) == check(folder, make_base()) == {}


def test_a_base_that_is_not_here_says_nothing_of_the_files(folder: Path) -> None:
    other = read_base({"other": torch.randn(8, 8)})
    assert check(folder, other) == {}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_found_in_the_file_that_has_it(
    damage: Callable[[Path], None], folder: Path
) -> None:
    digest = make_base().digests["kernel"]
    damage(basis_path(folder, digest))
    assert list(check(folder)) == [digest]
    assert list(check(folder, make_base())) == [digest]


def nan_inside(basis: Basis) -> Basis:
    basis.v[-1, 0] = torch.nan
    return basis


def swapped(basis: Basis) -> Basis:
    return Basis(basis.u.flip(0), basis.v.flip(0), basis.sigma.flip(0))


def negative(basis: Basis) -> Basis:
    return replace(basis, u=-basis.u, sigma=-basis.sigma)


def foreign_probes(basis: Basis) -> Basis:
    return replace(basis, probes=torch.ones(4, basis.rank))


@pytest.mark.parametrize("change", [nan_inside, swapped, negative, foreign_probes])
def test_forgeries_that_contradict_themselves_are_found(
    change: Callable[[Basis], Basis], folder: Path
) -> None:
    digest = forge(folder, "tall", change)
    assert list(check(folder)) == [digest]


def half_length(basis: Basis) -> Basis:
    return replace(basis, u=basis.u / 2, v=basis.v / 2)


def others(basis: Basis) -> Basis:
    """Those of another weight of this shape."""
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).half()
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return Basis(u.mT.half().contiguous(), vh.half(), sigma.float())


def larger(basis: Basis) -> Basis:
    return replace(basis, sigma=basis.sigma * 1.5)


def shorter(basis: Basis) -> Basis:
    return Basis(basis.u[:-1], basis.v[:-1], basis.sigma[:-1])


def other_shape(basis: Basis) -> Basis:
    return Basis(basis.u[:, :-1].contiguous(), basis.v, basis.sigma)


@pytest.mark.parametrize("change", [half_length, others, larger, shorter, other_shape])
def test_forgeries_need_the_weights_to_be_found(
    change: Callable[[Basis], Basis], folder: Path
) -> None:
    digest = forge(folder, "tall", change)
    assert check(folder) == {}
    assert list(check(folder, make_base())) == [digest]


def test_a_file_that_is_gone_has_no_flaw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = stored_bases(folder)
    listed[0].path.unlink()
    assert flaws(listed, make_base(), show_progress=False) == {}
    with pytest.raises(FileNotFoundError):
        flaw(listed[0].path, listed[0].digest)
    shutil.rmtree(folder)
    assert flaws(listed, make_base(), show_progress=False) == {}


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = stored_bases(folder)
    read = verification.read_basis

    def refuse(path: Path, digest: str) -> Basis:
        if path == listed[1].path:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, digest)

    monkeypatch.setattr(verification, "read_basis", refuse)
    found = flaws(listed, show_progress=False)
    assert list(found) == [listed[1]] and "Permission denied" in found[listed[1]]


def test_threads_started_later_are_not_limited(folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert check(folder) == {}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
