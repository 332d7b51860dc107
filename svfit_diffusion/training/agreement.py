"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.fields import COMMON_TO_A_PASS

_LEAST_RATE = 1e-3
_PRODIGY_RATES = (0.1, 10.0)  # a factor on the rate that it finds


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if two settings of a training contradict each other.

    Args:
        settings: all of a `TrainingConfig`, by name, each in its range.
    """
    for name in ("with_prior_preservation", "with_base_prior"):
        if settings[name] and not (settings["class_prompt"] or "").strip():
            raise ConfigError(
                f"{name} needs class_prompt: the instance prompt without the identifier, such "
                f"as 'a photo of a dog'"
            )
    if settings["cache_latents"] and not settings["center_crop"]:
        raise ConfigError(
            "random crops cannot be cached: leave center_crop on, or add --no_cache_latents"
        )
    if settings["use_8bit_adam"] and settings["optimizer"] != "AdamW":
        raise ConfigError(f"use_8bit_adam goes with AdamW, not with {settings['optimizer']}")
    if settings["quantization"] and settings["bnb_quantization_config_path"]:
        raise ConfigError("bnb_quantization_config_path stands in place of quantization: give one")
    for name in ("shard_base", "group_offload"):
        if settings[name]:
            _check_in_parts(name, settings)
    if settings["train_identifier"] is not None:
        _check_identifier(settings["train_identifier"], settings)
    if settings["optimizer"] == "prodigy":
        _check_prodigy(settings["learning_rate"], settings["text_encoder_lr"], settings["scale_lr"])
    _check_folders(settings)
    if settings["hub_model_id"] is not None:
        try:
            validate_repo_id(settings["hub_model_id"])
        except HFValidationError as error:
            raise ConfigError(f"hub_model_id is no name of a repository: {error}") from None


def _check_in_parts(setting: str, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if something is wanted that a denoiser in parts does not do."""
    for name in ("offload", "quantization", "bnb_quantization_config_path"):
        if settings[name]:
            raise ConfigError(f"{setting} does not go with {name}: give one of them")
    if settings["validation_prompt"]:
        raise ConfigError(
            f"a denoiser in parts ({setting}) draws no pictures: leave out validation_prompt, and "
            f"draw with the adapter afterwards"
        )


def _check_identifier(identifier: str, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a word of the subject's own does not go with other settings."""
    if not identifier.strip():
        raise ConfigError("train_identifier is empty: give a word such as 'sks', or leave it out")
    for name in ("shard_base", "group_offload"):
        if settings[name]:
            raise ConfigError(f"train_identifier does not go with {name}: give one of them")


def check_common(name: str, own: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a subject differs from those of its pass in what is common to them.

    Args:
        name: of the subject.
        own: its settings, by name.
        common: those of the others.
    """
    for setting in sorted(COMMON_TO_A_PASS):
        if own[setting] != common[setting]:
            raise ConfigError(
                f"subject {name!r} has {setting} {_said(own[setting])}, the others of its pass "
                f"{_said(common[setting])}: give it once for all, or train the subject by itself"
            )


def _said(value: Any) -> str:
    return "the default" if value is None else repr(value)


def rate_advice(optimizer: str, rate: float) -> str:
    """What to say of a learning rate that is allowed and unlikely to be meant; often nothing."""
    if optimizer != "prodigy" and rate < _LEAST_RATE:
        return (
            f"learning_rate {rate:g} is one for a LoRA; singular values learn next to nothing from "
            f"it, and want about 0.05"
        )
    return ""


def _check_prodigy(rate: float, text_encoder_rate: float | None, scale: bool) -> None:
    """Prodigy finds one rate for all; the one given is a factor on it."""
    low, high = _PRODIGY_RATES
    if not low <= rate <= high:
        raise ConfigError(
            f"prodigy finds the learning rate itself, and learning_rate is a factor on it: add "
            f"--learning_rate=1 (got {rate:g})"
        )
    if scale or text_encoder_rate not in (None, rate):
        raise ConfigError(
            "prodigy knows one rate for all, which it finds itself: leave out "
            + ("scale_lr" if scale else "text_encoder_lr, or take another optimizer")
        )


def _check_folders(settings: Mapping[str, Any]) -> None:
    """Nothing is to be written among the photos, where the next run would train on it."""
    if not settings["instance_data_dir"]:
        return
    photos = Path(settings["instance_data_dir"]).resolve()
    for name in ("output_dir", "class_data_dir"):
        if settings[name] and Path(settings[name]).resolve() == photos:
            raise ConfigError(f"{name} is the folder of the photos, {photos}; give another")
