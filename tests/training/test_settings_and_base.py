"""Settings that a kind of base model cannot take are refused before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from tiny import make_tiny_pipeline, save_without_weights

from svfit_diffusion.errors import ConfigError, SVFitError, TargetError
from svfit_diffusion.training import Trainer, TrainingConfig


def refusal(base: Path, photos: Path, **changes: Any) -> str:
    """What is said of settings, in one line."""
    photos.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(photos / "0.png")
    config = TrainingConfig(str(base), str(photos), "a photo of sks dog", **changes)
    with pytest.raises(SVFitError) as error:
        Trainer(config, show_progress=False)
    assert isinstance(error.value, ConfigError | TargetError)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sd", {"weighting_scheme": "mode"}, "weighting_scheme 'mode' is for flow matching"),
        ("sd", {"resolution": 17}, "use a multiple of"),
        ("sd", {"rank": "9999"}, "9999"),
        ("sd", {"budget": 10**9}, "leave budget out"),
        ("sd", {"target": ["nonesuch"]}, "nonesuch"),
        (
            "sd",
            {"train_text_encoder": False, "text_encoder_lr": 0.1},
            "text_encoder_lr 0.1 is for a text encoder, and none of this StableDiffusionPipeline",
        ),
        ("flux", {"snr_gamma": 5.0}, "snr_gamma and noise_offset are for"),
        ("flux", {"noise_offset": 0.1}, "snr_gamma and noise_offset are for"),
        ("z_image", {"train_text_encoder": True}, "leave out train_text_encoder"),
        ("chroma", {"gradient_checkpointing": True}, "leave gradient_checkpointing out"),
    ],
)
def test_what_a_kind_of_base_cannot_take(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = save_without_weights(tiny_pipelines.build(name), tmp_path / "base")
    assert message in refusal(base, tmp_path / "photos", **changes)


def test_images_to_edit_beside_photos(tmp_path: Path) -> None:
    base = save_without_weights(make_tiny_pipeline(), tmp_path / "base")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (32, 32)).save(photos / "0.condition.png")
    assert "FLUX.1 Kontext does" in refusal(base, photos)


def test_a_base_that_cannot_be_trained(tmp_path: Path) -> None:
    parts = make_tiny_pipeline().components
    inpainting = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    save_without_weights(inpainting, tmp_path / "base")
    assert "StableDiffusionInpaintPipeline cannot be trained" in refusal(
        tmp_path / "base", tmp_path / "photos"
    )


def test_what_fits_goes_on_to_the_weights(tmp_path: Path) -> None:
    base = save_without_weights(make_tiny_pipeline(), tmp_path / "base")
    assert "cannot load base model" in refusal(base, tmp_path / "photos")
