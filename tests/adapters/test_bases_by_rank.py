"""Adapters of a low rank hold, and make the cache hold, no more than their own singular vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_pipeline, run_unet
from torch import Tensor

from svfit_diffusion import SVFitConfig, inject
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.spectrum import leading, solver
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.rank import Rank
from svfit_diffusion.spectrum.stored import stored_bases

RANK = 3


def save_adapter(folder: Path, rank: int, seed: int = 0) -> Path:
    """Train an adapter of a rank on the tiny pipeline, after a fashion, and save it."""
    pipe = make_tiny_pipeline()
    injection = inject(pipe.unet, SVFitConfig(rank=rank), "a", trainable=False, show_progress=False)
    generator = torch.Generator().manual_seed(seed)
    for _, delta in injection.sigma_parameters("a"):
        delta.data = torch.randn(delta.shape, generator=generator)
    injection.select(injection.selection)
    return Path(pipe.save_svfit_weights(folder, "a"))


def drawn(pipe: Any) -> Tensor:
    return run_unet(pipe.unet)


def test_no_more_is_held_or_kept_than_an_adapter_has(empty_cache: Path, tmp_path: Path) -> None:
    file = save_adapter(tmp_path, RANK)
    small = sum(stored.size for stored in stored_bases(empty_cache))
    pipe = make_tiny_pipeline()
    base = drawn(pipe)
    pipe.load_svfit_weights(file, "a", show_progress=False)
    held = {shifted.basis.rank for shifted in Injection.of(pipe.unet).layers.values()}
    assert held == {RANK}
    changed = drawn(pipe)
    assert not torch.equal(changed, base)

    higher = save_adapter(tmp_path / "higher", 4 * RANK, seed=1)
    assert small < sum(stored.size for stored in stored_bases(empty_cache))
    pipe.load_svfit_weights(higher, "b", show_progress=False)
    held = {shifted.basis.rank for shifted in Injection.of(pipe.unet).layers.values()}
    assert held == {4 * RANK}
    pipe.set_svfit_adapters("a")
    # Those of a higher rank begin with the very same vectors.
    assert torch.equal(drawn(pipe), changed)
    pipe.unload_svfit_weights()
    assert torch.equal(drawn(pipe), base)


def test_an_adapter_fits_vectors_that_were_found_alone(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its sketches, whichever of the two solvers trained it."""
    file = save_adapter(tmp_path, RANK)
    pipe = make_tiny_pipeline()
    pipe.load_svfit_weights(file, "a", show_progress=False)
    expected = drawn(pipe)
    for stored in stored_bases(empty_cache):
        stored.path.unlink()

    monkeypatch.setattr(leading, "_SMALLEST", 1)
    monkeypatch.setattr(leading, "_SPACE", 0.95)
    found = 0

    def count(matrix: Tensor, rank: Rank) -> Basis | None:
        nonlocal found
        basis = leading.leading_basis(matrix, rank)
        found += basis is not None
        return basis

    monkeypatch.setattr(solver, "leading_basis", count)
    again = make_tiny_pipeline()
    again.load_svfit_weights(file, "a", show_progress=False)
    assert found
    # A few entries of the vectors are rounded to the other float16 beside them.
    torch.testing.assert_close(drawn(again), expected, rtol=1e-3, atol=1e-4)
