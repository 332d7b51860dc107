"""The cache where fewer triplets than all are wanted: what is kept, served, and computed anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import DAMAGES
from safetensors import safe_open
from torch import Tensor

from svfit_diffusion import CacheError
from svfit_diffusion.spectrum import cache, room, solver
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.basis_file import (
    FORMAT,
    LEADING_FORMAT,
    basis_bytes,
    basis_path,
    write_basis,
)
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases, missing_bases, read_base
from svfit_diffusion.spectrum.rank import Ranks
from svfit_diffusion.spectrum.stored import stored_bases
from svfit_diffusion.spectrum.verification import flaws

PATHS = ("a", "kernel")


def make_base() -> BaseWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = zip(PATHS, [(24, 32), (16, 3, 3, 3)], strict=True)
    return read_base({path: torch.randn(shape, generator=generator) for path, shape in shapes})


def load(rank: Ranks, base: BaseWeights | None = None) -> dict[str, Basis]:
    return load_bases(base or make_base(), rank, show_progress=False)


def ranks(bases: dict[str, Basis]) -> list[int]:
    return [basis.rank for basis in bases.values()]


@pytest.fixture
def solved(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices that were decomposed, as they come."""
    shapes: list[tuple[int, ...]] = []
    original = solver.singular_basis

    def record(matrix: Tensor) -> Basis:
        shapes.append(tuple(matrix.shape))
        return original(matrix)

    monkeypatch.setattr(solver, "singular_basis", record)
    return shapes


def test_only_the_triplets_wanted_are_kept(empty_cache: Path, solved: list[Any]) -> None:
    bases = load(4)
    assert ranks(bases) == [4, 4] and not any(basis.is_complete for basis in bases.values())
    for digest, (d_out, d_in) in zip(
        make_base().digests.values(), [(24, 32), (16, 27)], strict=True
    ):
        path = basis_path(empty_cache, digest)
        assert path.stat().st_size <= basis_bytes(d_out, d_in, 4) < basis_bytes(d_out, d_in) / 2
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == LEADING_FORMAT
    every = load(1.0)
    for path, basis in bases.items():
        for name in ("u", "v", "sigma"):
            assert torch.equal(getattr(basis, name), getattr(every[path], name)[:4])


def test_fewer_are_served_and_more_replace(empty_cache: Path, solved: list[Any]) -> None:
    load(4)
    assert len(solved) == 2
    assert ranks(load(4)) == [4, 4] and ranks(load(2)) == [2, 2]
    assert missing_bases(make_base(), 3).weights == {}
    assert len(solved) == 2
    assert list(missing_bases(make_base(), 5).weights) == list(PATHS)
    assert ranks(load({"a": 5, "kernel": 3})) == [5, 3]
    assert solved[2:] == [(24, 32)]
    assert ranks(load(1.0)) == [24, 16] and len(solved) == 5
    # Nor does a smaller one replace it, come from whom it may.
    cache._write(empty_cache, make_base().digests["a"], load(1.0)["a"].truncated(2))
    cache._write(empty_cache, make_base().digests["a"], load(7)["a"])
    assert ranks(load(24)) == [24, 16] and len(solved) == 5
    assert {file.format for file in stored_bases(empty_cache)} == {FORMAT}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_share_of_the_energy_is_kept_and_found_again(share: float, solved: list[Any]) -> None:
    first = load(share)
    assert len(solved) == 2
    assert ranks(load(share)) == ranks(first)
    assert len(solved) == 2
    every = load(1.0)
    assert ranks(first) == ranks(load(share))
    assert all(basis.rank <= every[path].rank for path, basis in first.items())


def test_layers_with_one_weight_get_the_most_that_one_of_them_wants(solved: list[Any]) -> None:
    weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    base = read_base({"one": weight, "other": weight.clone(), "third": weight * 1})
    wanted = {"one": 2, "other": 5, "third": 3}
    assert all(basis.rank >= wanted[path] for path, basis in load(wanted, base).items())
    count = len(solved)
    load({"one": 5, "other": 1, "third": 1}, base)
    assert len(solved) == count


def test_a_weight_that_lacks_rank_is_complete_with_what_it_has(
    empty_cache: Path, solved: list[Any]
) -> None:
    weight = torch.randn(3, 32).repeat(8, 1)
    base = read_base({"a": weight})
    assert ranks(load(4, base)) == ranks(load(20, base)) == ranks(load(1.0, base)) == [3]
    assert len(solved) == 1
    assert ranks(load(8, read_base({"zero": torch.zeros(4, 6)}))) == [0]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_of_leading_triplets_is_recomputed(
    damage: Callable[[Path], None], empty_cache: Path, solved: list[Any]
) -> None:
    load(4)
    damage(basis_path(empty_cache, make_base().digests["a"]))
    solved.clear()
    assert ranks(load(4)) == [4, 4]
    assert solved == [(24, 32)]
    assert flaws(stored_bases(empty_cache), make_base(), show_progress=False) == {}


def test_a_file_that_hides_its_second_triplet_is_found_by_the_weight(empty_cache: Path) -> None:
    basis, digest = load(6)["a"], make_base().digests["a"]
    kept = torch.tensor([0, 2, 3, 4, 5])
    forged = Basis(basis.u[kept], basis.v[kept], basis.sigma[kept], is_complete=False)
    write_basis(empty_cache, digest, forged)
    assert flaws(stored_bases(empty_cache), show_progress=False) == {}
    (words,) = flaws(stored_bases(empty_cache), make_base(), show_progress=False).values()
    assert "missing singular value" in words


def test_a_leading_file_without_triplets_is_none(empty_cache: Path, solved: list[Any]) -> None:
    empty = Basis(torch.zeros(0, 24).half(), torch.zeros(0, 32).half(), torch.zeros(0))
    object.__setattr__(empty, "is_complete", False)
    write_basis(empty_cache, make_base().digests["a"], empty)
    assert ranks(load(2)) == [2, 2]


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)


def test_no_room_is_said_before_anything_is_computed(
    empty_cache: Path, solved: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = basis_bytes(24, 32, 4) + basis_bytes(16, 27, 4)
    free(monkeypatch, needed - 1)
    with pytest.raises(CacheError, match=r"the bases take up to 1\.\d KiB.* 1\.\d KiB free.*SVFIT"):
        load(4)
    assert solved == [] and not empty_cache.exists()
    free(monkeypatch, needed)
    load(4)
    free(monkeypatch, 0)
    load(3)  # there already
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    load(1.0)  # as good as it gets where nothing may be written
