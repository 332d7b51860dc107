"""What a visitor chooses for a training: checked in the order of the page, each at its field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from app.base_model import BaseModel
from app.class_prompts import class_prompt_of, rare_word_of
from app.errors import SettingError
from app.own_words import WORDED_STRENGTH, check_captions
from app.presets import usual_target
from app.settings import Limits
from app.training_choices import TrainingChoices, choices_of
from app.training_machine import TrainingMachine

GOOD = TrainingChoices(name="rex", instance_prompt="a photo of sks dog")


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompt"),
    [
        ("a photo of sks dog", "a photo of a dog"),
        ("a photo of a sks dog.", "a photo of a dog"),
        ("a photo of my sks orange cat", "a photo of an orange cat"),
        ("a photo of sks dog on the beach", "a photo of a dog on the beach"),
        ("a picture of a bowl of zwx shoes", "a picture of a bowl of shoes"),
        ("a photo of sks glass", "a photo of a glass"),
        ("sks dog", "a dog"),
        ("a photo of sks", ""),
        ("a photo of sks in the snow", ""),
        ("a photo of", ""),
        (" ", ""),
    ],
)
def test_the_class_prompt_is_the_instance_prompt_without_the_rare_word(
    instance_prompt: str, class_prompt: str
) -> None:
    assert class_prompt_of(instance_prompt) == class_prompt


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"instance_prompt": " "}, "instance-prompt", "prompt is missing"),
        ({"instance_prompt": "x" * 2000}, "instance-prompt", "at most 1000 characters"),
        ({"class_prompt": "x" * 2000}, "class-prompt", "at most 1000 characters"),
        ({"instance_prompt": "sks"}, "class-prompt", "class prompt is missing"),
        ({"steps": None}, "steps", "the field is empty; give 1 to 5000"),
        ({"steps": 9999}, "steps", "1 to 5000 is possible, not 9999"),
        ({"steps": 1.5}, "steps", "a whole number"),
        ({"learning_rate": float("nan")}, "learning-rate", "not nan"),
        ({"learning_rate": "fast"}, "learning-rate", "not fast"),
        ({"rank": "many"}, "rank", "rank must be an integer"),
        ({"own_word": True, "identifier": "dog"}, "identifier", "class prompt says “dog” too"),
        ({"own_word": True, "identifier": "zwx"}, "identifier", "does not say “zwx”"),
        ({"identifier": "sks"}, "identifier", "“A word of its own” is off"),
        (
            {"own_word": True, "instance_prompt": "a photo of sks", "class_prompt": "a dog"},
            "identifier",
            "Which word of the instance prompt",
        ),
        (
            {"own_word": True, "instance_prompt": "sks", "prior_preservation": False},
            "class-prompt",
            "so that its rare word is known",
        ),
        ({"output_strength": 3}, "output-strength", "0 to 2"),
        ({"class_images": 0}, "class-images", "1 to 200"),
        ({"resolution": 4096}, "resolution", "0 to 1024"),
        ({"resolution": 17}, "resolution", "does not fit this base model"),
        ({"seed": -1}, "seed", "not -1"),
        ({"precision": "fp16"}, "precision", "fp16 needs a GPU"),
        ({"precision": "fp64"}, "precision", "one of auto, no, fp16, bf16, not fp64"),
        ({"checkpointing": "maybe"}, "checkpointing", "one of auto, on, off"),
        ({"offload": "maybe"}, "offload", "one of auto, on, off"),
        ({"watched_prompts": "a\nb\nc\nd\ne"}, "watched-prompt", "At most 4 prompts"),
        ({"guidance_scale": 99}, "guidance", "0 to 30"),
        ({"watched_steps": 1000}, "watched-steps", "1 to 100"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_of_its_field(
    base: BaseModel, changes: dict[str, Any], field: str, message: str
) -> None:
    choices = dataclasses.replace(GOOD, **changes)
    with pytest.raises(SettingError, match=message) as refusal:
        choices.config(Limits(), base)
    assert refusal.value.field == field


def test_the_first_field_of_the_page_is_told_of_first(base: BaseModel) -> None:
    choices = TrainingChoices(instance_prompt=" ", steps=0, rank="many", seed=-1)
    for right in (
        {"instance_prompt": "sks", "class_prompt": "a dog"},
        {"steps": 1},
        {"rank": "1.0"},
        {"seed": 1},
    ):
        with pytest.raises(SettingError) as refusal:
            choices.config(Limits(), base)
        assert refusal.value.field.replace("-", "_") == next(iter(right))
        choices = dataclasses.replace(choices, **right)
    assert choices.config(Limits(), base).max_train_steps == 1


def test_settings_say_what_was_chosen(base: BaseModel) -> None:
    chosen = dataclasses.replace(
        GOOD,
        class_prompt="a wolf",
        steps=30,
        rank="0.5",
        target=("to_q", "to_k"),
        own_word=True,
        identifier="photo",
        output_strength=0.5,
        resolution=32,
        seed=7,
        precision="bf16",
        checkpointing="on",
        offload="off",
        watched_prompts="sks dog\nsks dog asleep",
        guidance_scale=2.0,
        watched_steps=3,
    )
    config = chosen.config(Limits(), base)
    assert config.validation_prompt == ["sks dog", "sks dog asleep"]
    assert choices_of("rex", config) == chosen


def test_a_word_that_follows_from_the_prompt_goes_on_following(base: BaseModel) -> None:
    again = choices_of("rex", dataclasses.replace(GOOD, own_word=True).config(Limits(), base))
    assert again.own_word and again.identifier == ""
    other = dataclasses.replace(again, instance_prompt="a photo of zwx cat", class_prompt="")
    assert other.config(Limits(), base).train_identifier == "zwx"


def test_a_word_of_its_own_is_the_rare_one_and_is_used_gently(base: BaseModel) -> None:
    worded = dataclasses.replace(GOOD, own_word=True, prior_preservation=False)
    config = worded.config(Limits(), base)
    assert config.train_identifier == "sks"
    assert config.output_strength == WORDED_STRENGTH
    for changes in ({"output_strength": 1}, {"prior_preservation": True}):
        full = dataclasses.replace(worded, **changes)
        assert full.config(Limits(), base).output_strength is None


@pytest.mark.parametrize(
    ("prompt", "class_prompt", "word"),
    [
        ("a photo of sks dog.", "a photo of a dog", "sks"),
        ("sks", "a photo of a dog", "sks"),
        ("an sks apple", "an apple", "sks"),
        ("a photo of sks dog", "a dog", "sks"),
        ("a photo of my dog", "a photo of a dog", ""),
        ("a photo of sks", "", ""),
        ("dog", "", ""),
    ],
)
def test_the_rare_word_is_the_one_that_the_class_prompt_lacks(
    prompt: str, class_prompt: str, word: str
) -> None:
    assert rare_word_of(prompt, class_prompt) == word


def test_some_photo_is_learned_by_a_prompt_that_says_the_word() -> None:
    for word, captions in (
        ("sks", ["a dog", ""]),
        ("sks", ["a dog", "sks dog"]),
        (None, ["a dog"]),
    ):
        check_captions(word, captions)
    with pytest.raises(
        SettingError, match=r"No photo's caption says “sks”.*“sks a dog”"
    ) as refusal:
        check_captions("sks", ["a dog", "asleep"])
    assert refusal.value.field == "drop"


def test_what_is_left_open_follows(base: BaseModel) -> None:
    config = GOOD.config(Limits(), base)
    assert config.class_prompt == "a photo of a dog"
    assert config.validation_prompt == ["a photo of sks dog"]
    assert config.resolution == base.drawing.native_size
    assert config.mixed_precision == "no"  # on a CPU
    assert config.train_identifier is None and config.output_strength is None
    assert not config.gradient_checkpointing and not config.offload


def test_a_gpu_takes_16_bits_and_saves_memory_where_it_is_short(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = TrainingMachine(torch.device("cuda"), base.drawing.family)
    modules = [m for m in base.view().components.values() if isinstance(m, torch.nn.Module)]
    weights = 2 * sum(p.numel() for m in modules for p in m.parameters())
    for share, recomputes, offloads in ((0.2, False, False), (0.3, True, False), (0.6, True, True)):
        free = int(weights / share)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert machine.checkpointing("auto", "bf16") is recomputes
        assert machine.offload("auto", "bf16") is offloads
        assert machine.offload("auto", "no") is (share > 0.25)  # twice the bytes
        assert machine.checkpointing("off", "bf16") is False
    for bf16, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr("app.training_machine.is_bf16_available", lambda b=bf16, **_: b)
        assert machine.precision("auto") == precision
    monkeypatch.setattr(type(base.drawing.family), "float16", False)
    assert machine.precision("auto") == "no"


def test_no_target_is_all_of_a_small_base_and_attention_of_a_large_one(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert GOOD.config(Limits(), base).target == ["all"]
    monkeypatch.setattr("app.presets._SMALL", 1)
    assert GOOD.config(Limits(), base).target == ["attention"]
    assert usual_target(None) == ["attention"]
