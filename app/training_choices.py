"""What a visitor chooses for a training, as a form or a program gives it, and back again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from svfit_diffusion.spectrum.rank import parse_rank
from svfit_diffusion.training import TrainingConfig
from svfit_diffusion.training.checks import training_resolution

from .base_model import BaseModel
from .class_prompts import class_prompt_of, rare_word_of
from .errors import SettingError, at_field
from .library import AdapterLibrary
from .own_words import WORDED_STRENGTH, word_to_learn
from .presets import DEFAULT_PRESET, PRESETS, usual_target
from .settings import Limits
from .training_machine import AUTO, TrainingMachine

SAMPLES_PER_RUN = 5
"""How often pictures are drawn on the way, after those of the base model."""

MAX_WATCHED = 4
"""Prompts that can be watched."""

MAX_SEED = 2**31 - 1
MAX_CLASS_IMAGES = 200
_WARMUP = 20
_START = PRESETS[DEFAULT_PRESET]


@dataclass(frozen=True)
class TrainingChoices:
    """A training as it is asked for. Nothing is checked until `config` is asked for.

    Attributes:
        name: of the adapter.
        instance_prompt: names the subject.
        class_prompt: names its class; empty: what follows from the instance prompt.
        steps: optimizer steps.
        learning_rate: of the shifts.
        rank: singular values per layer, a number or a share of the energy; `""`: the usual.
        target: layers; none for the usual.
        own_word: whether to learn a word of the subject's own, too.
        identifier: which, as prompts say it; `""`: the instance prompt's rare word.
        output_strength: times this, what is learned is drawn and saved; 0 for the usual.
        train_text_encoder: None where the base leaves no choice.
        prior_preservation: whether to train on pictures of the class, too.
        class_images: how many of them.
        resolution: side in pixels; 0 for the base model's own.
        seed: of everything random; 0 for a new one.
        precision: of the frozen base, one of `PRECISION_NAMES`.
        checkpointing: whether to compute again instead of keeping, one of `SWITCH`.
        offload: whether to have models on the device one after the other, one of `SWITCH`.
        eight_bit: whether the optimizer's state has 8 bits.
        watched_prompts: drawn while it trains, one a line; empty: the instance prompt.
        guidance_scale: of these pictures; None for the usual.
        watched_steps: sampling steps of these pictures; None for the usual.
    """

    name: str = ""
    instance_prompt: str = ""
    class_prompt: str = ""
    steps: float | None = _START.steps
    learning_rate: float | None = _START.learning_rate
    rank: str = ""
    target: Sequence[str] = ()
    own_word: bool = False
    identifier: str = ""
    output_strength: float | None = 0
    train_text_encoder: bool | None = None
    prior_preservation: bool = _START.prior_preservation
    class_images: float | None = 48
    resolution: float | None = 0
    seed: float | None = 0
    precision: str = AUTO
    checkpointing: str = AUTO
    offload: str = AUTO
    eight_bit: bool = False
    watched_prompts: str = ""
    guidance_scale: float | None = None
    watched_steps: float | None = None

    def check_name(self) -> None:
        """Raise `SettingError` if no adapter can be called that."""
        with at_field("name"):
            AdapterLibrary.check_name(self.name)

    def config(self, limits: Limits, base: BaseModel) -> TrainingConfig:
        """The settings of the training on a base model, checked in the order of the form.

        Raises:
            SettingError: one cannot be used; `field` says which.
        """
        drawing, usual = base.drawing, base.drawing.sampling
        machine = TrainingMachine(base.device, drawing.family)
        prompt, class_prompt = self._prompts(limits)
        steps = _whole("Steps", "steps", self.steps, 1, limits.max_training_steps)
        rate = _number("Learning rate", "learning-rate", self.learning_rate, 1e-6, 10)
        rank = self.rank.strip() or None
        with at_field("rank"):
            parse_rank(rank or "1.0")
        word = word_to_learn(self.identifier, self.own_word, prompt, class_prompt, drawing.family)
        usual_strength = WORDED_STRENGTH if word and not self.prior_preservation else 1
        strength = _number("Output strength", "output-strength", self.output_strength, 0, 2)
        strength = strength or usual_strength
        images = _whole("Pictures", "class-images", self.class_images, 1, MAX_CLASS_IMAGES)
        side = _whole("Resolution", "resolution", self.resolution, 0, limits.max_side)
        if drawing.family:
            with at_field("resolution"):
                training_resolution(drawing.family, side or None)
        seed = _whole("Seed", "seed", self.seed, 0, MAX_SEED)
        precision = machine.precision(self.precision)
        recompute = machine.checkpointing(self.checkpointing, precision)
        offload = machine.offload(self.offload, precision)
        watched = _watched(self.watched_prompts, limits) or [prompt]
        sampling = usual.steps if self.watched_steps is None else self.watched_steps
        sampling = _whole("Sampling steps", "watched-steps", sampling, 1, limits.max_steps)
        guidance = usual.guidance_scale if self.guidance_scale is None else self.guidance_scale
        guidance = _number("Guidance", "guidance", guidance, 0, 30)
        with at_field(""):
            return TrainingConfig(
                instance_prompt=prompt,
                class_prompt=class_prompt or None,
                max_train_steps=steps,
                learning_rate=rate,
                lr_warmup_steps=min(_WARMUP, steps // 10),
                rank=rank,
                target=list(self.target) or usual_target(drawing.family),
                train_identifier=word or None,
                output_strength=None if strength == 1 else strength,
                train_text_encoder=self.train_text_encoder,
                with_prior_preservation=self.prior_preservation,
                num_class_images=images,
                resolution=side or min(drawing.native_size, limits.max_side),
                seed=seed or None,
                mixed_precision=cast(Any, precision),
                gradient_checkpointing=recompute,
                offload=offload,
                use_8bit_adam=self.eight_bit,
                validation_prompt=watched,
                validation_steps=max(1, steps // SAMPLES_PER_RUN),
                guidance_scale=guidance,
                num_inference_steps=sampling,
            )

    def _prompts(self, limits: Limits) -> tuple[str, str]:
        """The instance prompt and the class prompt, which may be empty where none is needed."""
        prompt = _prompt("instance-prompt", self.instance_prompt, limits)
        if not prompt:
            raise SettingError(
                "The instance prompt is missing: name your subject by a rare word and its class, "
                "such as “a photo of sks dog”.",
                "instance-prompt",
            )
        class_prompt = _prompt("class-prompt", self.class_prompt, limits)
        class_prompt = class_prompt or class_prompt_of(prompt)
        if self.prior_preservation and not class_prompt:
            raise SettingError(
                "The class prompt is missing: say what kind of thing your subject is, such as “a "
                "photo of a dog”, or switch prior preservation off under Advanced settings.",
                "class-prompt",
            )
        return prompt, class_prompt


def choices_of(name: str, config: TrainingConfig) -> TrainingChoices:
    """What was chosen for a training, from its settings."""
    word = config.train_identifier or ""
    follows = word == rare_word_of(config.instance_prompt, config.class_prompt or "")
    return TrainingChoices(
        name=name,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt or "",
        steps=config.max_train_steps,
        learning_rate=config.learning_rate,
        rank=config.rank or "",
        target=tuple(config.target),
        own_word=config.train_identifier is not None,
        identifier="" if follows else word,  # and goes on following another prompt
        output_strength=config.output_strength or 1.0,
        train_text_encoder=config.train_text_encoder,
        prior_preservation=config.with_prior_preservation,
        class_images=config.num_class_images,
        resolution=config.resolution,
        seed=config.seed or 0,
        precision=config.mixed_precision or AUTO,
        checkpointing="on" if config.gradient_checkpointing else "off",
        offload="on" if config.offload else "off",
        eight_bit=config.use_8bit_adam,
        watched_prompts="\n".join(config.validation_prompt),
        guidance_scale=config.guidance_scale,
        watched_steps=config.num_inference_steps,
    )


def _prompt(field: str, text: str, limits: Limits) -> str:
    text = text.strip()
    if len(text) > limits.max_prompt_length:
        raise SettingError(
            f"A prompt has at most {limits.max_prompt_length} characters, this one {len(text)}.",
            field,
        )
    return text


def _watched(text: str, limits: Limits) -> list[str]:
    prompts = [
        line
        for line in (_prompt("watched-prompt", row, limits) for row in text.split("\n"))
        if line
    ]
    if len(prompts) > MAX_WATCHED:
        raise SettingError(
            f"At most {MAX_WATCHED} prompts can be watched, these are {len(prompts)}.",
            "watched-prompt",
        )
    return prompts


def _number(label: str, field: str, value: float | None, low: float, high: float) -> float:
    if value is None:
        raise SettingError(f"{label}: the field is empty; give {low:g} to {high:g}.", field)
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise SettingError(f"{label}: {low:g} to {high:g} is possible, not {value}.", field)
    return float(value)


def _whole(label: str, field: str, value: float | None, low: int, high: int) -> int:
    number = _number(label, field, value, low, high)
    if number != int(number):
        raise SettingError(f"{label}: a whole number is needed, not {value}.", field)
    return int(number)
