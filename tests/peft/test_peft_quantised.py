"""Quantised layers under PEFT: outputs and gradients are those of the dequantised, merged model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from quantised_models import EVERY_KIND, ROUNDED_INPUTS, dequantised, quantise
from torch import Tensor, nn

from svfit_diffusion.errors import BaseMismatchError, StateError
from svfit_diffusion.peft import SVFitConfig
from svfit_diffusion.peft.model import shifted_layers

CONFIG = SVFitConfig(r=16, target_modules=["0", "2"])


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.Linear(64, 8))
    return layers.requires_grad_(False)


def quantised_model(kind: str) -> nn.Module:
    """With the last layer as it was."""
    model: Any = plain_model()
    last = model[3]
    quantise(model, kind, among="")
    model[3] = last
    return model


def stand_in(model: nn.Module) -> nn.Module:
    """`plain_model` with the weights that a quantised one computes with."""
    plain: nn.Module = dequantised(model, plain_model())
    return plain


def inputs() -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def with_shifts(model: nn.Module) -> Any:
    """Under PEFT, with the same shifts on every base."""
    adapted = get_peft_model(model, copy.copy(CONFIG))
    generator = torch.Generator().manual_seed(2)
    for layer in shifted_layers(adapted).values():
        layer.svfit_delta["default"].data.normal_(generator=generator).mul_(0.3)
    return adapted


def tolerance(kind: str) -> dict[str, float]:
    # float16 vectors round a shift by 3e-4 of itself.
    return {"rtol": 0, "atol": 5e-2 if kind == ROUNDED_INPUTS else 2e-3}


@EVERY_KIND
def test_output_and_gradients_are_those_of_the_merged_model(kind: str) -> None:
    model = quantised_model(kind)
    oracle = with_shifts(stand_in(model))
    adapted = with_shifts(model)
    x = inputs()
    y, expected = adapted(x), oracle(x)
    torch.testing.assert_close(y, expected, **tolerance(kind))
    y.square().sum().backward()
    expected.square().sum().backward()
    pairs = zip(shifted_layers(adapted).values(), shifted_layers(oracle).values(), strict=True)
    for here, there in pairs:
        grad, wanted = here.svfit_delta["default"].grad, there.svfit_delta["default"].grad
        assert grad is not None and wanted is not None and wanted.abs().max() > 0
        off = float((grad - wanted).norm() / wanted.norm())
        assert off < (3e-2 if kind == ROUNDED_INPUTS else 2e-3)
    merged = oracle.merge_and_unload()
    torch.testing.assert_close(y, merged(x), **tolerance(kind))


@EVERY_KIND
def test_disabled_it_is_the_base_to_the_bit(kind: str) -> None:
    model = quantised_model(kind)
    x = inputs()
    before = model(x)
    adapted = with_shifts(model)
    assert not torch.equal(adapted(x), before)
    with adapted.disable_adapter():
        assert torch.equal(adapted(x), before)
    assert torch.equal(adapted.unload()(x), before)


@EVERY_KIND
def test_rows_have_adapters_of_their_own(kind: str) -> None:
    adapted = with_shifts(quantised_model(kind)).eval()
    adapted.add_adapter("other", copy.copy(CONFIG))
    x = inputs()
    with torch.no_grad():
        alone = adapted(x)
        adapted.set_adapter("other")  # zeros
        base = adapted(x)
        mixed = adapted(x, adapter_names=["default", "__base__", "other", "default", "other"])
    wanted = torch.stack([alone[0], base[1], base[2], alone[3], base[4]])
    # Products of other shapes: the last bits.
    torch.testing.assert_close(mixed, wanted, rtol=1e-5, atol=1e-5)


@EVERY_KIND
def test_merging_is_refused_before_anything_is_merged(kind: str) -> None:
    model = plain_model()
    first: Any = quantised_model(kind)
    model[2] = first[2]  # type: ignore[operator]
    adapted = with_shifts(model)
    x = inputs()
    before = adapted(x)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(StateError, match=f"quantised as {kind}, and adapters cannot be merged"):
            merge()
        assert not any(layer.merged for layer in shifted_layers(adapted).values())
        assert torch.equal(adapted(x), before)
    with pytest.raises(StateError, match="cannot be merged"):
        shifted_layers(adapted)["base_model.model.2"].merge()


@EVERY_KIND
def test_adapters_belong_to_the_quantised_base(kind: str, tmp_path: Path) -> None:
    adapted = with_shifts(quantised_model(kind))
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(quantised_model(kind), tmp_path).train()  # as `adapted` is
    x = inputs()
    torch.testing.assert_close(again(x), adapted(x), rtol=0, atol=1e-6)
    with pytest.raises(BaseMismatchError, match="was trained on other weights"):
        PeftModel.from_pretrained(plain_model(), tmp_path)


@EVERY_KIND
def test_what_it_adds_to_the_weight_is_no_packed_number(kind: str) -> None:
    model = quantised_model(kind)
    oracle, adapted = with_shifts(stand_in(model)), with_shifts(model)
    for path, layer in shifted_layers(adapted).items():
        change = layer.get_delta_weight("default")
        assert change.dtype == torch.float32
        torch.testing.assert_close(
            change, shifted_layers(oracle)[path].get_delta_weight("default"), rtol=0, atol=1e-5
        )
