"""The rank of a training where none is said: all, or the leading values of very wide layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import init_empty_weights
from tiny_training import make_trainer, shifts
from torch import nn

from svfit_diffusion.files.adapter import read_adapter
from svfit_diffusion.training import layers
from svfit_diffusion.training.layers import rank_to_train


def model_of(*sides: tuple[int, int]) -> nn.Module:
    with init_empty_weights():
        linears = {f"to_{i}": nn.Linear(d_in, d_out) for i, (d_out, d_in) in enumerate(sides)}
        return nn.ModuleDict({"attn": nn.ModuleDict(linears)})


@pytest.mark.parametrize(
    ("sides", "rank"),
    [
        ([(2048, 2048), (320, 2048)], "1.0"),
        ([(2049, 2048)], "1.0"),  # of the shorter side
        ([(3072, 3072), (2048, 2048)], "128"),
        ([(3072, 3072), (64, 3072)], "64"),  # as many as the narrowest has
    ],
)
def test_it_follows_the_widest_layer(sides: list[tuple[int, int]], rank: str) -> None:
    model = model_of(*sides)
    assert rank_to_train(None, {"transformer": model}, ["all"]) == rank
    assert rank_to_train("0.9", {"transformer": model}, ["all"]) == "0.9"


def test_a_training_has_it_and_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_WIDE", 1)
    monkeypatch.setattr(layers, "_LEADING", 3)
    trainer = make_trainer(tmp_path)
    assert {parameter.numel() for parameter in trainer.sigma_parameters()} == {3}
    assert shifts(trainer).numel() == 3 * len(trainer.sigma_parameters())
    assert trainer.chosen_settings()["rank"] == "3"
    adapter = read_adapter(trainer.save(tmp_path / "saved"))
    assert adapter.metadata.rank == {"unet": "3"}
    assert "rank" not in make_trainer(tmp_path, rank="2").chosen_settings()
