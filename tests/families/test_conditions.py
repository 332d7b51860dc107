"""Conditions: picked, moved, joined."""

from __future__ import annotations

import torch

from svfit_diffusion.families import Conditions


def conditions(*lengths: int) -> Conditions:
    rows = [torch.full((length, 2), float(length)) for length in lengths]
    return Conditions(
        {
            "tokens": rows,
            "pooled": torch.tensor([[float(length)] for length in lengths]),
            "mask": torch.tensor([[length] for length in lengths]),
        }
    )


def test_select_repeats_and_reorders() -> None:
    picked = conditions(1, 2, 3).select([2, 0, 2])
    assert len(picked) == 3
    assert [len(row) for row in picked["tokens"]] == [3, 1, 3]
    assert picked["pooled"].tolist() == [[3.0], [1.0], [3.0]]
    assert picked["mask"].tolist() == [[3], [1], [3]]


def test_cat_keeps_the_order() -> None:
    joined = Conditions.cat([conditions(4), conditions(1, 2)])
    assert len(joined) == 3
    assert [len(row) for row in joined["tokens"]] == [4, 1, 2]
    assert joined["mask"].tolist() == [[4], [1], [2]]


def test_masks_keep_their_type() -> None:
    moved = conditions(1, 2).to("cpu", torch.bfloat16)
    assert {row.dtype for row in moved["tokens"]} == {torch.bfloat16}
    assert moved["pooled"].dtype == torch.bfloat16
    assert moved["mask"].dtype == torch.int64


def test_gradients_pass() -> None:
    made = conditions(1, 2)
    made["pooled"].requires_grad_(True)
    Conditions.cat([made, made]).select([0, 3]).to("cpu", torch.float64)["pooled"].sum().backward()
    assert made["pooled"].grad is not None
    assert made["pooled"].grad.tolist() == [[1.0], [1.0]]
