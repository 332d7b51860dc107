"""Weights that lack rank: vectors of σ = 0 are anyone's guess, so they are left out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from merged import make_adapter
from tiny import make_tiny_pipeline, make_tiny_unet, run_unet
from torch import Tensor

from svfit_diffusion import ConfigError, SVFitConfig, TargetError, inject, sigma_parameters
from svfit_diffusion.files.adapter import Adapter, read_adapter, state_dict, write_adapter
from svfit_diffusion.spectrum.shift import shift_matrix
from svfit_diffusion.spectrum.solver import singular_basis

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def deficient(d_out: int, d_in: int, rank: int, kind: str) -> Tensor:
    """A float16 matrix of this rank, up to rounding where a product makes it."""
    generator = torch.Generator().manual_seed(3)
    full = torch.randn(d_out, d_in, generator=generator)
    if kind == "zero rows":
        full[rank:] = 0
    if kind == "zero columns":
        full[:, rank:] = 0
    if kind == "repeated rows":
        full = full[:rank].repeat(-(-d_out // rank), 1)[:d_out]
    return full.half()


KINDS = ["zero rows", "zero columns", "repeated rows"]


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (48, 32)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_does_not_matter(kind: str, shape: tuple[int, int]) -> None:
    matrix = deficient(*shape, rank=12, kind=kind)
    assert torch.linalg.matrix_rank(matrix.double()) == 12
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
    basis, permuted = singular_basis(matrix), singular_basis(matrix[order])
    assert basis.rank == permuted.rank == 12
    delta = torch.randn(12, generator=torch.Generator().manual_seed(2))
    change = shift_matrix(basis, delta)
    back = torch.empty_like(change)
    back[order] = shift_matrix(permuted, delta)
    # Float32 vectors and sums; 85 to 160 % before those of σ = 0 were left out.
    assert (back - change).norm() < 1e-5 * change.norm()


def with_weight(weight: Tensor) -> Any:
    unet = make_tiny_unet()
    unet.get_submodule(LAYER).weight.data.copy_(weight)
    return unet


def ranks(unet: Any) -> dict[str, int]:
    return {path: shift.numel() for path, shift in sigma_parameters(unet)}


def test_a_weight_of_zeros_is_left_out() -> None:
    unet = with_weight(torch.zeros(64, 64))
    base = run_unet(unet)
    injection = inject(unet, show_progress=False)
    assert LAYER not in ranks(unet)
    assert len(ranks(unet)) == 31
    assert torch.equal(run_unet(unet), base)
    injection.eject()
    with pytest.raises(TargetError, match="are all zero"):
        inject(unet, SVFitConfig(target=LAYER), show_progress=False)


@pytest.mark.parametrize(
    ("rank", "expected"), [(4, 4), (12, 12), (13, 12), (64, 12), (1.0, 12), (0.9999999, 12)]
)
def test_a_rank_above_what_a_weight_has_trains_what_it_has(rank: Any, expected: int) -> None:
    unet = with_weight(deficient(64, 64, 12, "repeated rows").float())
    inject(unet, SVFitConfig(rank=rank, target=LAYER), show_progress=False)
    assert ranks(unet) == {LAYER: expected}


def test_a_rank_beyond_the_shape_is_still_refused() -> None:
    unet = with_weight(deficient(64, 64, 12, "zero rows").float())
    with pytest.raises(ConfigError, match="rank 65 exceeds the 64"):
        inject(unet, SVFitConfig(rank=65, target=LAYER), show_progress=False)


def test_a_file_of_version_1_loses_values_that_have_no_vectors(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = make_tiny_pipeline()
    layers = {LAYER: 12, LAYER.replace("to_q", "to_k"): 0, LAYER.replace("to_q", "to_v"): 64}
    for path, rank in layers.items():
        weight = deficient(64, 64, max(rank, 1), "zero rows").float() * (rank > 0)
        pipe.unet.get_submodule(path).weight.data.copy_(weight)
    base = run_unet(pipe.unet)
    deltas = {path: torch.randn(64, generator=torch.Generator().manual_seed(5)) for path in layers}
    adapter = Adapter({"unet": deltas}, make_adapter({"unet": pipe.unet}).metadata)

    with caplog.at_level(logging.WARNING):
        pipe.load_svfit_weights(state_dict(adapter), "old", show_progress=False)
    warned = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert [message.split(":")[0] for message in warned] == [f"unet.{p}" for p in [*layers][:2]]
    assert ": 52 of" in warned[0]
    assert ": 64 of" in warned[1]

    saved = read_adapter(pipe.save_svfit_weights(tmp_path))
    lengths = {path: delta.numel() for path, delta in saved.deltas["unet"].items()}
    assert lengths == {path: rank for path, rank in layers.items() if rank}
    changed = run_unet(pipe.unet)
    assert (changed - base).abs().max() > 0.01
    again = make_tiny_pipeline()
    again.unet = pipe.unet
    pipe.unload_svfit_weights()
    assert torch.equal(run_unet(pipe.unet), base)
    write_adapter(tmp_path / "again.safetensors", saved)
    again.load_svfit_weights(tmp_path / "again.safetensors", show_progress=False)
    assert torch.equal(run_unet(pipe.unet), changed)
