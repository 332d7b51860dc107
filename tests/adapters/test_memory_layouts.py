"""Weights that lie in memory in other ways than usual: the same pictures, and δ = 0 to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from merged import check_output, make_adapter, merged, put
from tiny import make_tiny_unet, run_unet
from torch import nn

from svfit_diffusion import SVFitConfig, eject, inject
from svfit_diffusion.adapters.targets import attention_layers, shiftable_layers
from svfit_diffusion.files.adapter import Adapter


def column_major(weight: torch.Tensor) -> torch.Tensor:
    return weight.t().contiguous().t()


def with_gaps(weight: torch.Tensor) -> torch.Tensor:
    wide = torch.full((weight.shape[0], weight.shape[1] + 3), torch.nan)
    wide[:, 1 : 1 + weight.shape[1]] = weight
    return wide[:, 1 : 1 + weight.shape[1]]


def lay(unet: nn.Module, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for layer in attention_layers(unet).values():
        layer.weight = nn.Parameter(how(layer.weight.data), requires_grad=False)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "column-major": lambda unet: lay(unet, column_major),
    "with gaps": lambda unet: lay(unet, with_gaps),
    "channels last": lambda unet: unet.to(memory_format=torch.channels_last),
}


def strides(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    return {path: layer.weight.stride() for path, layer in shiftable_layers(unet).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_kept_and_acts_alike(layout: str) -> None:
    unet = make_tiny_unet()
    LAYOUTS[layout](unet)
    base, before = run_unet(unet), strides(unet)
    adapter = make_adapter({"unet": unet}, config=SVFitConfig(target="all"), size=0.2)
    injection = put(unet, adapter)
    check_output(run_unet(unet), base, run_unet(merged(unet_of(layout), adapter.deltas["unet"])))
    if layout != "with gaps":  # which a weight of its own need not have
        assert strides(unet) == before
    injection.eject()
    assert strides(unet) == before
    assert torch.equal(run_unet(unet), base)


def unet_of(layout: str) -> nn.Module:
    unet = make_tiny_unet()
    LAYOUTS[layout](unet)
    return unet


@pytest.mark.parametrize("trainable", [True, False], ids=["live", "set"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shift_of_zero_changes_no_bit(layout: str, trainable: bool) -> None:
    unet = unet_of(layout)
    base = run_unet(unet)
    config = SVFitConfig(target="all")
    injection = inject(unet, config, trainable=trainable, show_progress=False)
    assert torch.equal(run_unet(unet), base)
    injection.eject()
    assert torch.equal(run_unet(unet), base)


def test_a_weight_that_two_layers_share() -> None:
    def tied() -> Any:
        unet: Any = make_tiny_unet()
        attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
        attention.to_k.weight = attention.to_q.weight
        return unet

    unet = tied()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    base, own = run_unet(unet), attention.to_q.weight
    adapter = make_adapter({"unet": unet})
    put(unet, adapter)
    # Of one weight, but shifted by two adapters: two weights.
    check_output(run_unet(unet), base, run_unet(merged(tied(), adapter.deltas["unet"])))
    eject(unet)
    assert attention.to_q.weight is own
    assert attention.to_k.weight is own
    assert torch.equal(run_unet(unet), base)


def test_an_adapter_made_in_one_layout_fits_another() -> None:
    adapter: Adapter = make_adapter({"unet": make_tiny_unet()})
    assert adapter.metadata.fingerprints  # so that another base would be refused
    for layout in LAYOUTS:
        put(unet_of(layout), adapter)
