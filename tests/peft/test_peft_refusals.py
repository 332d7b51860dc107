"""What SVFit under PEFT refuses, in a sentence, and leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, mapping
from peft_kinds import KINDS, layers
from safetensors.torch import load_file, save_file
from torch import nn

import svfit_diffusion.peft
from svfit_diffusion.errors import (
    BaseMismatchError,
    BasisError,
    CheckpointError,
    ConfigError,
    PackageError,
    TargetError,
)
from svfit_diffusion.files.adapter import parse_adapter
from svfit_diffusion.peft import SVFitConfig
from svfit_diffusion.peft.method import register
from svfit_diffusion.peft.requirement import require_peft

KIND = KINDS["Linear"]


def test_peft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(PackageError, match=r"needs PEFT 0.21 or newer, which is missing: pip"):
        require_peft()
    assert issubclass(PackageError, ImportError)


@pytest.mark.parametrize("version", ["0.20.9", "0.9.1"])
def test_peft_is_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(PackageError, match=rf"0.21 or newer, found {version}: pip install"):
        require_peft()


@pytest.mark.parametrize("version", ["0.21.0", "0.21.1.dev0", "0.22rc1", "1.0.0"])
def test_peft_is_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    require_peft()


def test_peft_has_the_method_already() -> None:
    with pytest.raises(PackageError, match="PEFT has a method 'SVFIT' already"):
        register(SVFitConfig, svfit_diffusion.peft.SVFitModel)


def test_loading_without_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT says the method's name and no more; `docs/peft.md` says what to do."""
    KIND.adapted().save_pretrained(tmp_path)
    monkeypatch.delitem(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, "SVFIT")
    with pytest.raises(KeyError, match="'SVFIT'"):
        PeftModel.from_pretrained(KIND.build(), tmp_path)


class Quantised(nn.Parameter):
    """As bitsandbytes and torchao have them."""


def linear(weight: Callable[[nn.Linear], nn.Parameter]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.Linear(4, 3)
        layer.weight = weight(layer)
        return layer

    return build


def filled(value: float) -> Callable[[], nn.Module]:
    return linear(lambda layer: nn.Parameter(torch.full_like(layer.weight, value)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "LayerNorm": (lambda: nn.LayerNorm(4), TargetError, "'0' is a LayerNorm, which SVFit cannot"),
    "max_norm": (lambda: nn.Embedding(9, 4, max_norm=1.0), TargetError, "'0' is an Embedding with"),
    "quantised": (
        linear(lambda layer: Quantised(layer.weight.data)),
        BasisError,
        r"0: cannot decompose a Quantised \(a quantised",
    ),
    "integers": (
        linear(lambda layer: nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)),
        BasisError,
        "0: cannot decompose a weight of dtype torch.int8",
    ),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        TargetError,
        "which SVFit cannot shift",
    ),
    "not in memory": (lambda: nn.Linear(4, 3, device="meta"), BasisError, "0: .*not in memory"),
    "NaN": (filled(torch.nan), BasisError, "0: a weight holds NaN"),
    "zero": (filled(0.0), TargetError, "the weights of 0 are zero: nothing can be shifted"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_without_a_basis(name: str) -> None:
    build, error, words = LAYERS[name]
    model = nn.Sequential(build(), nn.Linear(3, 3))
    before = list(model.modules())
    with pytest.raises(error, match=words):
        get_peft_model(model, SVFitConfig(target_modules=["0"]))
    assert list(model.modules()) == before


def test_a_part_of_multi_head_attention() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 8)
    with pytest.raises(TargetError, match=r"'self_attn.out_proj' is a part of torch's Multihead"):
        get_peft_model(model, SVFitConfig(target_modules=["out_proj"]))


def test_zeros_beside_others_are_left_out() -> None:
    model = nn.Sequential(filled(0.0)(), nn.Linear(3, 3))
    assert len(layers(get_peft_model(model, SVFitConfig(target_modules=["0", "1"])))) == 1


def test_an_unknown_target_is_for_peft_to_refuse() -> None:
    with pytest.raises(ValueError, match=r"Target modules {'nowhere'} not found in the base model"):
        KIND.adapted(target_modules=["nowhere"])


SETTINGS = {
    "negative": ({"r": -1}, "rank must be at least 1, got -1"),
    "fraction": ({"r": 1.5}, "a float rank is an energy fraction"),
    "pattern": ({"rank_pattern": {"0": 0}}, "rank must be at least 1, got 0"),
    "too high": ({"r": 11}, "rank 11 exceeds the 10 singular values of 0"),
    "which blocks": (
        {"target_modules": "0|2", "layers_to_transform": [0]},
        r"layers_to_transform goes with names in target_modules, got the pattern '0\|2'",
    ),
    "blocks alone": ({"layers_pattern": "h"}, "layers_pattern goes with layers_to_transform"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    settings, words = SETTINGS[name]
    with pytest.raises(ConfigError, match=words):
        KIND.adapted(**settings)


def test_another_base(tmp_path: Path) -> None:
    KIND.adapted().save_pretrained(tmp_path)
    other = KIND.build()
    other[0].weight.data[0, 0] += 1
    with pytest.raises(BaseMismatchError, match=r"was trained on other weights.*base_fingerprint"):
        PeftModel.from_pretrained(other, tmp_path)
    config = SVFitConfig.from_pretrained(tmp_path)
    config.base_fingerprint = None
    other = KIND.build()
    other[0].weight.data[0, 0] += 1
    PeftModel.from_pretrained(other, tmp_path, config=config)


DAMAGES = {
    "unknown layer": (
        lambda t: {**t, "base_model.model.9.svfit_delta": torch.ones(2)},
        "no layer '9' is shifted here",
    ),
    "too long": (
        lambda t: {**t, "base_model.model.0.svfit_delta": torch.ones(12)},
        "0: 12 values, the layer has 10 singular values",
    ),
    "NaN": (
        lambda t: {**t, "base_model.model.0.svfit_delta": torch.tensor([torch.nan])},
        "0.delta' holds NaN or infinite values",
    ),
    "matrix": (
        lambda t: {**t, "base_model.model.0.svfit_delta": torch.ones(2, 2)},
        r"0.delta' is \(2, 2\) torch.float32, expected a float vector",
    ),
    "nothing": (lambda t: {"other": torch.ones(1)}, "no tensor is named ….svfit_delta"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGES[name]
    KIND.adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(damage(load_file(file)), file)
    with pytest.raises(CheckpointError, match=words):
        PeftModel.from_pretrained(KIND.build(), tmp_path)


def test_our_loader_knows_the_form() -> None:
    with pytest.raises(
        CheckpointError, match=r"form, which is read by svfit_diffusion.peft.read_peft"
    ):
        parse_adapter({"base_model.model.0.svfit_delta": torch.ones(2)}, {})
