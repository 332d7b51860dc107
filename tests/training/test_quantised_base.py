"""Training on a quantised denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from quantised_models import dequantised, quantise
from tiny_training import advance, make_config, shifts

from svfit_diffusion import BaseMismatchError, ConfigError
from svfit_diffusion.adapters.quantised import quantization_of
from svfit_diffusion.training import machine
from svfit_diffusion.training.trainer import Trainer

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def train(folder: Path, pipe: Any = None, steps: int = 3, **changes: Any) -> Trainer:
    trainer = Trainer(make_config(folder, **changes), pipe=pipe, show_progress=False)
    advance(trainer, steps)
    return trainer


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [("float8_e4m3fn", False), ("bitsandbytes nf4", True)]
)
def test_it_learns_what_the_dequantised_model_learns(
    kind: str, checkpointing: bool, tmp_path: Path
) -> None:
    pipe, plain = tiny.make_tiny_pipeline(), tiny.make_tiny_pipeline()
    quantise(pipe.unet, kind)
    dequantised(pipe.unet, plain.unet)
    runs = [train(tmp_path, base, gradient_checkpointing=checkpointing) for base in (pipe, plain)]
    found, expected = map(shifts, runs)
    assert expected.norm() > 0.1
    # AdamW makes as much of a faint gradient as of a strong one, so of those of a few δ the sign is
    # chance; the vectors of both are rounded to float16 alike.
    assert (found - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("quantization", "precision"), [("fp8", "no"), ("fp8", "bf16"), ("torchao_int8", "bf16")]
)
def test_a_base_is_quantised_while_it_is_loaded(
    quantization: str, precision: str, tmp_path: Path
) -> None:
    if quantization == "torchao_int8":
        pytest.importorskip("torchao")
    base = tiny.save_tiny_pipeline(tmp_path / "base")
    trainer = train(
        tmp_path,
        pretrained_model_name_or_path=str(base),
        quantization=quantization,
        mixed_precision=precision,
    )
    kind = {"fp8": "float8_e4m3fn", "torchao_int8": "torchao int8"}[quantization]
    layer = trainer.pipe.unet.get_submodule(LAYER)
    assert quantization_of(layer, layer.weight) == kind
    assert shifts(trainer).isfinite().all() and shifts(trainer).any()
    dtype = torch.float32 if precision == "no" else torch.bfloat16
    assert trainer.pipe.unet.conv_norm_out.weight.dtype == dtype
    assert trainer.adapter().metadata.quantization == {"unet": kind}
    saved = tmp_path / "adapter"
    trainer.save(saved)
    image = trainer.generate(["a photo of sks dog"], 1)
    assert image
    with pytest.raises(BaseMismatchError, match=rf"unet is quantised as {kind}, and .* is not"):
        tiny.make_tiny_pipeline().load_svfit_weights(saved, show_progress=False)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"quantization": "nf5"}, "did you mean nf4"),
    "both": (
        {"quantization": "fp8", "bnb_quantization_config_path": "x.json"},
        "in place of quantization",
    ),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **settings)


def lacking(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    from svfit_diffusion.training import quantization

    monkeypatch.setattr(
        quantization.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: None if name in packages else object(),
    )


def test_what_the_machine_lacks_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, "bitsandbytes", "torchao")
    for name, package in {"nf4": "bitsandbytes", "torchao_float8": "torchao"}.items():
        config = make_config(tmp_path, quantization=name)
        with pytest.raises(ConfigError, match=rf"{name} needs the package {package}: pip install"):
            machine.check_machine(config)
    lacking(monkeypatch)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="on a GPU only, and this machine has none"):
        machine.check_machine(make_config(tmp_path, quantization="int8"))


CONTENTS = {
    "not JSON": "{",
    "a list": "[]",
    "neither": "{}",
    "both": '{"load_in_4bit": true, "load_in_8bit": true}',
}


@pytest.mark.parametrize("text", CONTENTS.values(), ids=CONTENTS)
def test_a_file_of_bitsandbytes_settings_that_says_something_else(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.json (cannot be read|should hold)"):
        machine.check_machine(make_config(tmp_path, bnb_quantization_config_path=str(path)))
    with pytest.raises(ConfigError, match="cannot be read"):
        machine.check_machine(make_config(tmp_path, bnb_quantization_config_path="nowhere"))


def test_a_single_file_is_not_quantised(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, pretrained_model_name_or_path="model.safetensors", quantization="fp8"
    )
    with pytest.raises(ConfigError, match="single file"):
        Trainer(config, show_progress=False)
