"""A target means the layers it says, or is refused."""

from __future__ import annotations

import re

import pytest
from tiny import make_tiny_text_encoder, make_tiny_unet
from torch import nn

from svfit_diffusion.adapters.targets import select_targets, shiftable_layers
from svfit_diffusion.errors import TargetError


def paths(target: str | tuple[str, ...]) -> set[str]:
    return set(select_targets(make_tiny_unet(), target))


def test_target_attention_is_the_four_projections_of_every_attention() -> None:
    names = [path.partition(".attn")[2][2:] for path in paths("attention")]
    assert set(names) == {"to_q", "to_k", "to_v", "to_out.0"}
    # Two attentions in each of four transformer blocks.
    assert len(names) == 4 * 2 * 4


def test_target_all_is_every_linear_and_convolution() -> None:
    expected = {
        name
        for name, tensor in make_tiny_unet().state_dict().items()
        if name.endswith(".weight") and tensor.dim() >= 2
    }
    assert {f"{path}.weight" for path in paths("all")} == expected


def test_target_of_a_text_encoder() -> None:
    chosen = select_targets(make_tiny_text_encoder(), "attention")
    assert len(chosen) == 2 * 4
    names = {path.rpartition(".")[2] for path in chosen}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_targets_as_suffix_and_regular_expression() -> None:
    assert all(path.endswith(".to_v") for path in paths("to_v"))
    assert paths("attn1.to_v") < paths("to_v")
    assert paths(r".*\.to_v") == paths("to_v")
    assert paths("conv_in") == {"conv_in"}
    # A name matches whole parts of a path, a regular expression the whole path.
    assert paths(("conv_in", "conv_out")) == {"conv_in", "conv_out"}
    assert paths(("to_q", "attention")) == paths("attention")
    assert "time_embedding.linear_1" in paths("linear_1")


def test_targets_come_in_model_order() -> None:
    unet = make_tiny_unet()
    chosen = list(select_targets(unet, ("conv_out", "attention", "conv_in")))
    assert chosen == [path for path in shiftable_layers(unet) if path in chosen]
    assert (chosen[0], chosen[-1]) == ("conv_in", "conv_out")


@pytest.mark.parametrize("target", ["to_x", "o_q", "to_", "norm1", ("to_q", "to_x")])
def test_targets_that_match_nothing_are_refused(target: str | tuple[str, ...]) -> None:
    missing = re.escape(repr(target if isinstance(target, str) else target[-1]))
    with pytest.raises(TargetError, match=rf"target {missing} matches no .* such as 'conv_in'"):
        paths(target)


@pytest.mark.parametrize("target", ["(", "*"])
def test_a_broken_regular_expression_is_refused(target: str) -> None:
    with pytest.raises(TargetError, match="is not a valid regular expression"):
        paths(target)


@pytest.mark.parametrize("target", ["attention", "all", "to_q"])
def test_a_model_without_layers_is_refused(target: str) -> None:
    with pytest.raises(TargetError, match="this model has no such layer"):
        select_targets(nn.LayerNorm(4), target)
