"""Settings of a picture, which anyone may have written."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import SettingError
from app.picture import MAX_SEED, SCHEDULERS, PictureSettings, variations, whole
from app.settings import AppSettings, Limits

LIMITS = Limits(max_steps=50, max_side=128, max_adapters=2, max_prompt_length=20)

BAD_VALUES = [
    {"prompt": "x" * 21},
    {"prompt": None},
    {"prompt": "\ud800"},
    {"negative_prompt": "x" * 21},
    {"adapters": ["rex"]},
    {"adapters": {"a": 1, "b": 1, "c": 1}},
    {"adapters": {"rex": "1"}},
    {"adapters": {"rex": float("nan")}},
    {"adapters": {"rex": 1e9}},
    {"adapters": {"rex": True}},
    {"steps": 0},
    {"steps": 51},
    {"steps": 2.5},
    {"steps": True},
    {"steps": "20"},
    {"guidance_scale": -1},
    {"guidance_scale": float("inf")},
    {"guidance_scale": [1]},
    {"width": 8},
    {"width": 136},
    {"height": 65},
    {"scheduler": "no such"},
    {"scheduler": None},
    {"seed": -1},
    {"seed": MAX_SEED + 1},
    {"seed": 10**400},
]


@pytest.mark.parametrize("values", BAD_VALUES, ids=str)
def test_values_that_cannot_be_used_are_refused_in_one_sentence(values: dict[str, Any]) -> None:
    settings = PictureSettings(**{"prompt": "a dog", **values})
    with pytest.raises(SettingError) as refusal:
        settings.check(LIMITS)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


def test_the_ends_of_the_ranges_are_allowed() -> None:
    for scheduler in SCHEDULERS:
        PictureSettings(
            "x" * 20, "", {"a": -10, "b": 10.0}, 50, 0, 16, 128, MAX_SEED, scheduler
        ).check(LIMITS)


def test_a_mapping_gives_settings_and_unknown_names_are_passed_over() -> None:
    values = {"prompt": "a dog", "seed": 3, "from_the_future": [1]}
    assert PictureSettings.from_mapping(values, LIMITS) == PictureSettings("a dog", seed=3)


def test_a_mapping_without_a_prompt_is_refused() -> None:
    with pytest.raises(SettingError, match="prompt"):
        PictureSettings.from_mapping({"seed": 3}, LIMITS)


def test_an_unhashable_scheduler_is_refused() -> None:
    with pytest.raises(SettingError):
        PictureSettings("a dog", scheduler=["Euler"]).check(LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"port": 0}, {"port": 65536}, {"username": "me"}, {"password": "secret"}], ids=str
)
def test_app_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        AppSettings(**settings)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(SettingError, match="max_images"):
        Limits(max_images=0)


def test_variations_have_consecutive_seeds_even_past_the_last() -> None:
    settings = PictureSettings("a dog", seed=MAX_SEED)
    assert [v.seed for v in variations(settings, 3, LIMITS)] == [MAX_SEED, 0, 1]


@pytest.mark.parametrize("count", [0, -1, 9, 1.5, True, None, "2"])
def test_a_number_of_pictures_that_cannot_be_is_refused(count: Any) -> None:
    with pytest.raises(SettingError, match="number of pictures"):
        variations(PictureSettings("a dog"), count, LIMITS)


@pytest.mark.parametrize(
    ("value", "number"), [(20, 20), (20.0, 20), (2.5, 2.5), (None, None), ("20", "20")]
)
def test_whole_numbers_are_told_from_others(value: Any, number: Any) -> None:
    assert whole(value) == number and type(whole(value)) is type(number)
