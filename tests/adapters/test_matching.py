"""Which layers of a model an adapter file means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.layers import Shiftable
from svfit_diffusion.adapters.matching import match_layers
from svfit_diffusion.errors import CheckpointError

LAYERS: dict[str, Shiftable] = {
    "encoder.layers.0.q_proj": nn.Linear(4, 6),
    "a.to_q": nn.Linear(5, 3),
    "a.conv": nn.Conv2d(2, 20, 3),
}


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("own", ["", "text_model."])
def test_text_encoder_paths_match_with_and_without_prefix(prefix: str, own: str) -> None:
    layers: dict[str, Shiftable] = {f"{own}encoder.layers.0.q_proj": nn.Linear(4, 6)}
    deltas = {f"{prefix}encoder.layers.0.q_proj": torch.ones(4)}
    assert match_layers(deltas, layers, "text_encoder") == dict(zip(deltas, layers, strict=True))


@pytest.mark.parametrize(
    ("deltas", "reason"),
    [
        ({"a.to_x": torch.ones(1)}, "no Linear or Conv layer 'a.to_x'"),
        ({"a.to_q": torch.ones(4)}, "4 values, the layer has 3"),
        ({"a.conv": torch.ones(19)}, "19 values, the layer has 18"),
        (
            {
                "encoder.layers.0.q_proj": torch.ones(1),
                "text_model.encoder.layers.0.q_proj": torch.zeros(1),
            },
            "twice",
        ),
    ],
)
def test_shifts_that_do_not_fit_are_refused(deltas: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        match_layers(deltas, LAYERS, "text_encoder")


def test_all_that_does_not_fit_is_listed_and_what_fits_is_full_rank() -> None:
    with pytest.raises(CheckpointError, match=r"(?s)'x'.*'y'"):
        match_layers({"x": torch.ones(1), "y": torch.ones(1)}, LAYERS, "unet")
    fitting = {"a.conv": torch.ones(18), "a.to_q": torch.ones(3)}
    assert match_layers(fitting, LAYERS, "unet") == {"a.conv": "a.conv", "a.to_q": "a.to_q"}
