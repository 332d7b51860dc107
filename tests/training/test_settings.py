"""Every setting is checked before a model loads: one sentence, and the nearest right spelling."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import NoiseSettings
from svfit_diffusion.families.diffusion import Diffusion
from svfit_diffusion.training import Trainer, TrainingConfig, machine, stage
from svfit_diffusion.training.agreement import rate_advice
from svfit_diffusion.training.arguments import parse_args
from svfit_diffusion.training.optimization import OptimizerSettings, make_optimizer

NUMBERS = [
    field.name
    for field in dataclasses.fields(TrainingConfig)
    if field.type in ("float", "float | None")
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_infinite_or_none(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler": "cosin"}, r"lr_scheduler must be one of linear, .*did you mean cosine\?"),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler must be one of"),
        ({"optimizer": "adamw"}, r"did you mean AdamW\?"),
        ({"mixed_precision": "FP16"}, r"did you mean fp16\?"),
        ({"weighting_scheme": "logitnormal"}, r"did you mean logit_normal\?"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be at least 0 and less than 1"),
        ({"adam_beta2": -0.1}, "adam_beta2 must be at least 0"),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be a positive"),
        ({"lr_num_cycles": 0}, "lr_num_cycles must be at least 1"),
        ({"lr_power": -1.0}, "lr_power must be a positive"),
        ({"logit_std": 0.0}, "logit_std must be a positive"),
        ({"mode_scale": 3.0}, r"between -1 and 1\.75"),
        ({"guidance_scale": -1.0}, "guidance_scale must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 2**63}, "seed must be less than"),
        ({"optimizer": "prodigy"}, "--learning_rate=1"),
        (
            {"optimizer": "prodigy", "learning_rate": 1.0, "text_encoder_lr": 0.5},
            "one rate for all.*leave out text_encoder_lr",
        ),
        (
            {"optimizer": "prodigy", "learning_rate": 1.0, "scale_lr": True},
            "leave out scale_lr",
        ),
        ({"with_prior_preservation": True, "class_prompt": " "}, "needs class_prompt"),
        ({"instance_data_dir": "photos", "output_dir": "./photos"}, "output_dir is the folder of"),
        ({"instance_data_dir": "photos", "class_data_dir": "photos"}, "class_data_dir is the fold"),
        ({"hub_model_id": "a/b/c"}, "hub_model_id is no name"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        TrainingConfig(**changes)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer=AdanW"], r"optimizer must be one of AdamW.*did you mean AdamW\?"),
        (["--lr_scheduler", "Linear"], r"did you mean linear\?"),
        (["--over_write"], r"did you mean --overwrite\?"),
        (["--learning_rate=nan"], "learning_rate must be a number, got nan"),
    ],
)
def test_words_of_a_command_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_args(words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_to": "tensorbord"}, r"did you mean tensorboard\?"),
        ({"report_to": "comet_ml"}, "pip install comet-ml"),
        ({"enable_xformers_memory_efficient_attention": True}, "pip install xformers"),
        ({"use_8bit_adam": True}, "pip install bitsandbytes"),
        ({"push_to_hub": True}, "needs a token"),
    ],
)
def test_what_the_machine_lacks_is_said_before_the_model_loads(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(stage, "load_base", load)
    monkeypatch.setattr(machine, "get_available_trackers", list)
    monkeypatch.setattr(machine, "is_xformers_available", lambda: False)
    monkeypatch.setattr(machine, "get_token", lambda: None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(ConfigError, match=message):
        Trainer(TrainingConfig("base", str(tmp_path), "a dog", **changes), show_progress=False)


def test_a_rate_for_a_lora_is_spoken_of() -> None:
    assert "about 0.05" in rate_advice("AdamW", 1e-4)
    assert "about 0.05" in rate_advice("adafactor", 1e-4)
    assert not rate_advice("AdamW", TrainingConfig.learning_rate)
    assert not rate_advice("prodigy", 1.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_are_finite_where_nothing_is_left_of_the_image(prediction: str) -> None:
    """Zero terminal SNR: at the last time there is only noise."""
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type=prediction)
    assert scheduler.alphas_cumprod[-1] == 0
    process = Diffusion.of(scheduler, NoiseSettings(snr_gamma=5.0))
    times = torch.arange(1000)
    weights = process.weigh(torch.ones(1000), times)
    snr = scheduler.alphas_cumprod.double() / (1 - scheduler.alphas_cumprod.double())
    expected = snr.clamp(max=5) / (snr + 1 if prediction == "v_prediction" else snr)
    expected[-1] = 0 if prediction == "v_prediction" else 1
    # float32's share of 1 − ᾱ at the first times, where ᾱ is 0.9999
    torch.testing.assert_close(weights.double(), expected, rtol=2e-3, atol=0)


def test_adafactor_moves_what_begins_at_zero() -> None:
    """Its usual ways scale steps by the parameters, or find a rate of their own."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    settings = OptimizerSettings("adafactor", False, (0.9, 0.99), 0.0, 1e-8)
    optimizer = make_optimizer(settings, [{"params": [parameter], "lr": 0.05}])
    for _ in range(3):
        (parameter - torch.tensor([1.0, -1.0, 2.0, 0.0])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0.05 < parameter[0] < 0.5
    assert -0.5 < parameter[1] < -0.05
    assert parameter[3] == 0
