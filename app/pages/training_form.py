"""The settings of a training as a form: a few in sight, the others folded away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from svfit_diffusion.training import TrainingConfig
from svfit_diffusion.training.checks import trained_text_encoders

from ..errors import SettingError
from ..presets import PRESETS
from ..services import Services

_DEFAULT_PRESET = "balanced"
_SAMPLES_PER_RUN = 5
_TARGETS = [
    ("attention (queries, keys, values, outputs)", "attention"),
    ("all (every Linear and Conv)", "all"),
    ("queries (to_q)", "to_q"),
    ("keys (to_k)", "to_k"),
    ("values (to_v)", "to_v"),
    ("outputs (to_out.0)", "to_out.0"),
]
_MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class TrainingForm:
    """The fields of a training's settings; what the base model leaves no choice of is None."""

    name: gr.Textbox
    instance_prompt: gr.Textbox
    class_prompt: gr.Textbox
    steps: gr.Number
    learning_rate: gr.Number
    rank: gr.Textbox
    target: gr.Dropdown
    train_text_encoder: gr.Checkbox | None
    prior_preservation: gr.Checkbox
    class_images: gr.Number
    resolution: gr.Number
    seed: gr.Number
    watched_prompt: gr.Textbox
    guidance_scale: gr.Number
    watched_steps: gr.Number

    @property
    def components(self) -> list[Component]:
        """All fields."""
        return [field for field in vars(self).values() if field is not None]

    def config(self, values: Mapping[Component, Any]) -> TrainingConfig:
        """The settings that the fields hold.

        Raises:
            SettingError: a field is empty that must not be.
            ConfigError: a value is out of range.
        """

        def number(field: gr.Number) -> float:
            if values[field] is None:
                raise SettingError(f"{field.label} must be a number; the field is empty.")
            return float(values[field])

        steps = int(number(self.steps))
        prompt = values[self.instance_prompt].strip()
        class_prompt = values[self.class_prompt].strip()
        if values[self.prior_preservation] and not class_prompt:
            raise SettingError(
                "Prior preservation needs a class prompt, such as “a photo of a dog”: give one, or "
                "switch prior preservation off under Advanced settings."
            )
        return TrainingConfig(
            instance_prompt=prompt,
            class_prompt=class_prompt or None,
            max_train_steps=steps,
            learning_rate=number(self.learning_rate),
            lr_warmup_steps=min(20, steps // 10),
            rank=values[self.rank].strip(),
            target=values[self.target] or ["attention"],
            train_text_encoder=values[self.train_text_encoder] if self.train_text_encoder else None,
            with_prior_preservation=values[self.prior_preservation],
            num_class_images=int(number(self.class_images)),
            resolution=int(number(self.resolution)),
            seed=int(number(self.seed)) or None,
            validation_prompt=[values[self.watched_prompt].strip() or prompt],
            validation_steps=max(1, steps // _SAMPLES_PER_RUN),
            guidance_scale=number(self.guidance_scale),
            num_inference_steps=int(number(self.watched_steps)),
        )


def build_form(services: Services) -> TrainingForm:
    """Build the form; choosing how long to train sets what goes with it."""
    name = gr.Textbox(
        label="Name of the adapter",
        info="What you will choose it by on the Generate page.",
        placeholder="rex",
        max_length=64,
        elem_id="train-name",
    )
    instance_prompt = gr.Textbox(
        label="Instance prompt",
        info="Names your subject by a rare word and its class; you will use both in prompts later.",
        placeholder="a photo of sks dog",
        elem_id="train-instance-prompt",
    )
    class_prompt = gr.Textbox(
        label="Class prompt",
        info="The same without the rare word: what the model is to remember about the class.",
        placeholder="a photo of a dog",
        elem_id="train-class-prompt",
    )
    preset = gr.Radio(
        [(f"{name.capitalize()} ({p.steps} steps)", name) for name, p in PRESETS.items()],
        value=_DEFAULT_PRESET,
        label="How long",
        info="Quick shows whether it works. Balanced suits most subjects. Thorough is closer to "
        "the photos, and less free in other scenes.",
        elem_id="train-preset",
    )
    with gr.Accordion("Advanced settings", open=False, elem_id="train-advanced"):
        form = _build_advanced(services, name, instance_prompt, class_prompt)

    # In the browser alone, so that a click on Train right after finds the new values.
    values = {key: [p.steps, p.learning_rate, p.prior_preservation] for key, p in PRESETS.items()}
    preset.input(
        None,
        preset,
        [form.steps, form.learning_rate, form.prior_preservation],
        js=f"key => ({json.dumps(values)})[key]",
        api_visibility="private",
    )
    return form


def _build_advanced(
    services: Services, name: gr.Textbox, instance_prompt: gr.Textbox, class_prompt: gr.Textbox
) -> TrainingForm:
    start, drawing = PRESETS[_DEFAULT_PRESET], services.base.drawing
    with gr.Row():
        steps = gr.Number(
            start.steps,
            precision=0,
            minimum=1,
            maximum=services.limits.max_training_steps,
            label="Steps",
            info="100 to 1000. More: closer to the photos, less free in other scenes.",
            elem_id="train-steps",
        )
        learning_rate = gr.Number(
            start.learning_rate,
            label="Learning rate",
            info="0.02 to 0.1; far above a LoRA's. Halve it if pictures fall apart.",
            elem_id="train-learning-rate",
        )
    with gr.Row():
        rank = gr.Textbox(
            "1.0",
            label="Rank",
            info="Singular values per layer: a number such as 64, or a share of the energy such as "
            "0.99; 1.0 is all.",
            elem_id="train-rank",
        )
        target = gr.Dropdown(
            _TARGETS,
            value=["attention"],
            multiselect=True,
            label="Target",
            info="Layers to train. Attention is usual; all learns more and forgets more.",
            elem_id="train-target",
        )
    train_text_encoder = _text_encoder_box(services)
    with gr.Row():
        prior_preservation = gr.Checkbox(
            start.prior_preservation,
            label="Prior preservation",
            info="Trains on pictures of the class, too, so that other dogs stay other dogs.",
            elem_id="train-prior",
        )
        class_images = gr.Number(
            48,
            precision=0,
            minimum=1,
            maximum=200,
            label="Pictures of the class",
            info="Drawn once per class prompt; 50 to 200.",
            elem_id="train-class-images",
        )
    with gr.Row():
        resolution = gr.Number(
            min(drawing.native_size, services.limits.max_side),
            precision=0,
            minimum=16,
            maximum=services.limits.max_side,
            label="Resolution",
            info=f"Side in pixels; best the base model's own, {drawing.native_size}.",
            elem_id="train-resolution",
        )
        seed = gr.Number(
            0,
            precision=0,
            minimum=0,
            maximum=_MAX_SEED,
            label="Seed",
            info="The same seed and photos give the same adapter; 0 draws a new one.",
            elem_id="train-seed",
        )
    watched_prompt = gr.Textbox(
        label="Prompt to watch",
        info="Drawn now and then while it trains; empty: the instance prompt.",
        placeholder="a photo of sks dog on the beach",
        elem_id="train-watched-prompt",
    )
    with gr.Row():
        watched_steps = gr.Number(
            drawing.sampling.steps,
            precision=0,
            minimum=1,
            maximum=services.limits.max_steps,
            label="Sampling steps of these pictures",
            info=f"Fewer are drawn sooner; usual here: {drawing.sampling.steps}.",
            elem_id="train-watched-steps",
        )
        guidance_scale = gr.Number(
            drawing.sampling.guidance_scale,
            minimum=0,
            maximum=30,
            label="Guidance of these pictures",
            info=f"Usual here: {drawing.sampling.guidance_scale:g}.",
            elem_id="train-guidance",
        )
    return TrainingForm(
        name=name,
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        steps=steps,
        learning_rate=learning_rate,
        rank=rank,
        target=target,
        train_text_encoder=train_text_encoder,
        prior_preservation=prior_preservation,
        class_images=class_images,
        resolution=resolution,
        seed=seed,
        watched_prompt=watched_prompt,
        guidance_scale=guidance_scale,
        watched_steps=watched_steps,
    )


def _text_encoder_box(services: Services) -> gr.Checkbox | None:
    """The choice to train text encoders, where the base has such as can be trained."""
    family = services.base.drawing.family
    if family is None or not family.trained_text_encoders:
        return None
    is_usual = bool(trained_text_encoders(family, None))
    return gr.Checkbox(
        is_usual,
        label="Train the text encoder too",
        info="Gives the rare word a meaning: subjects are learned sooner and better."
        if is_usual
        else "Usually left out here: CLIP alone would learn, and a larger one reads along.",
        elem_id="train-text-encoder",
    )
