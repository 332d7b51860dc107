"""What cannot be trained is refused by name, before any work."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_pipelines
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.families import TABLE, Family, NoiseSettings, family_of
from svfit_diffusion.families.flow import Flow


def refused(pipe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        family_of(pipe).check()


def test_unknown_pipelines() -> None:
    pipe = DDPMPipeline(tiny.make_tiny_unet(), DDIMScheduler())
    with pytest.raises(ConfigError, match=r"a DDPMPipeline cannot be trained; .*FluxPipeline, "):
        family_of(pipe)


def test_a_subclass_is_of_its_parents_family() -> None:
    pipe = tiny_pipelines.build("sd")
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    assert type(family_of(pipe)).__name__ == "StableDiffusion"


@pytest.mark.parametrize("name", TABLE)
def test_every_line_of_the_table_leads_to_a_family(name: str) -> None:
    pipe = type(name, (SimpleNamespace,), {})()
    assert isinstance(family_of(pipe), Family)


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_components_that_are_missing(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    family = family_of(pipe)
    assert set(family.trained_text_encoders) <= set(family.text_encoders)
    required = set(family.text_encoders) - set(family.optional_text_encoders)
    for component in ("vae", family.denoiser, *required):
        model = getattr(pipe, component)
        setattr(pipe, component, None)
        refused(pipe, f"loaded without its {component}, which training needs")
        setattr(pipe, component, model)
    family.check()


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_schedulers_of_another_kind(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    if isinstance(family_of(pipe).noise_process(NoiseSettings()), Flow):
        pipe.scheduler = DDIMScheduler()
        refused(pipe, "its scheduler is a DDIMScheduler")
    else:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        refused(pipe, "with a FlowMatchEulerDiscreteScheduler")


@pytest.mark.parametrize(
    ("name", "multiple", "native"),
    [
        ("sd", 4, 16),  # halves in the autoencoder and in the UNet, 8 latents
        ("sd3", 4, 16),
        ("flux", 4, 32),  # its autoencoder's
        ("qwen_image", 4, 256),
        ("z_image", 4, 1024),
        ("sana", 32, 256),  # thirty-seconds in the autoencoder, patches of one
        ("lumina2", 16, 64),
    ],
)
def test_sizes(name: str, multiple: int, native: int) -> None:
    family = family_of(tiny_pipelines.build(name))
    assert family.size_multiple == multiple
    assert family.native_size == native


def test_inpainting_unets() -> None:
    pipe = tiny_pipelines.build("sd")
    pipe.unet = tiny.make_tiny_unet(in_channels=9)
    refused(pipe, "takes 9 channels, its latents have 4")


def test_unets_that_are_told_the_guidance() -> None:
    pipe = tiny_pipelines.build("sdxl")
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    refused(pipe, "was distilled and is told the guidance scale")


def test_fill_transformers() -> None:
    pipe = tiny_pipelines.build("flux")
    pipe.transformer.register_to_config(in_channels=96)
    refused(pipe, "takes 96 channels, its latents have 16")


def test_distilled_models_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    klein = tiny_pipelines.build("flux2_klein")
    with caplog.at_level(logging.WARNING, "svfit_diffusion"):
        family_of(tiny_pipelines.build("flux")).check()
        family_of(klein).check()
        assert not caplog.records
        family_of(tiny_pipelines.build("flux_schnell")).check()
        assert "schnell, which was distilled" in caplog.text
        klein.register_to_config(is_distilled=True)
        family_of(klein).check()
        assert "FLUX.2 klein was distilled" in caplog.text
    assert family_of(klein).generation_arguments((64, 64))["num_inference_steps"] == 4
