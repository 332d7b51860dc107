"""The settings of a training that few need to change."""

from __future__ import annotations

import gradio as gr
from gradio.components import Component

from svfit_diffusion.training.checks import trained_text_encoders

from ..own_words import WORDED_STRENGTH, usually_has_word
from ..presets import DEFAULT_PRESET, PRESETS
from ..services import Services
from ..training_choices import MAX_WATCHED, TrainingChoices
from ..training_machine import AUTO, PRECISION_NAMES, SWITCH, TrainingMachine

_TARGETS = [
    ("attention (queries, keys, values, outputs)", "attention"),
    ("all (every Linear and Conv)", "all"),
    ("queries (to_q)", "to_q"),
    ("keys (to_k)", "to_k"),
    ("values (to_v)", "to_v"),
    ("outputs (to_out.0)", "to_out.0"),
]


def build_advanced(services: Services) -> dict[str, Component]:
    """Build the fields, by the names of `TrainingChoices`."""
    fields = _build_learning()
    fields |= _build_class(services)
    with gr.Row():
        fields["resolution"] = _number(
            "Resolution",
            min(services.base.drawing.native_size, services.limits.max_side),
            f"Side in pixels; best the base model's own, {services.base.drawing.native_size}.",
            "resolution",
        )
        fields["seed"] = _number(
            "Seed", 0, "The same seed and photos give the same adapter; 0 draws a new one.", "seed"
        )
    return fields | _build_machine(services) | _build_watching(services)


def _build_learning() -> dict[str, Component]:
    start = PRESETS[DEFAULT_PRESET]
    with gr.Row():
        steps = _number(
            "Steps",
            start.steps,
            "100 to 1000. More: closer to the photos, less free in other scenes.",
            "steps",
        )
        learning_rate = _number(
            "Learning rate",
            start.learning_rate,
            "0.02 to 0.1; far above a LoRA's. Halve it if pictures fall apart.",
            "learning-rate",
            whole=False,
        )
    with gr.Row():
        rank = gr.Textbox(
            TrainingChoices.rank,
            label="Rank",
            info="Singular values per layer: 64, or a share of the energy such as 0.99. Empty: "
            "all, of very wide layers the leading ones.",
            elem_id="train-rank",
        )
        target = gr.Dropdown(
            _TARGETS,
            value=list(TrainingChoices.target),
            multiselect=True,
            label="Target",
            info="Layers to train. Empty: all of a small base model, attention of a large one.",
            elem_id="train-target",
        )
    with gr.Row():
        identifier = gr.Textbox(
            TrainingChoices.identifier,
            label="Its word",
            info="The word to be learned too, such as sks. Empty: the one that the class prompt "
            "does not say.",
            max_length=64,
            elem_id="train-identifier",
        )
        output_strength = _number(
            "Output strength",
            TrainingChoices.output_strength,
            f"What was learned counts times this. 0: {WORDED_STRENGTH} with a word of its own "
            "and no prior preservation, else 1.",
            "output-strength",
            whole=False,
        )
    return {
        "steps": steps,
        "learning_rate": learning_rate,
        "rank": rank,
        "target": target,
        "identifier": identifier,
        "output_strength": output_strength,
    }


def _build_class(services: Services) -> dict[str, Component]:
    fields: dict[str, Component] = {}
    text_encoder = _text_encoder_box(services)
    if text_encoder is not None:
        fields["train_text_encoder"] = text_encoder
    with gr.Row():
        fields["prior_preservation"] = gr.Checkbox(
            PRESETS[DEFAULT_PRESET].prior_preservation
            and not usually_has_word(services.base.drawing.family),
            label="Prior preservation",
            info="Trains on pictures of the class, too, so that other dogs stay other dogs.",
            elem_id="train-prior",
        )
        fields["class_images"] = _number(
            "Pictures of the class",
            TrainingChoices.class_images,
            "Drawn once per class prompt; 50 to 200.",
            "class-images",
        )
    return fields


def _build_machine(services: Services) -> dict[str, Component]:
    choices = (
        (
            *("precision", "Precision", PRECISION_NAMES),
            "Of the frozen model; auto: 16 bits on a GPU, 32 on a CPU.",
        ),
        (
            *("checkpointing", "Gradient checkpointing", SWITCH),
            "Less memory, slower steps; auto: where memory is short.",
        ),
        (
            *("offload", "Offloading", SWITCH),
            "Models on the device one by one; auto: where memory is short.",
        ),
    )
    fields: dict[str, Component] = {}
    with gr.Row():
        for name, label, values, info in choices:
            fields[name] = gr.Dropdown(
                list(values),
                value=AUTO,
                label=label,
                info=info,
                min_width=140,
                elem_id=f"train-{name}",
            )
    if TrainingMachine(services.base.device, services.base.drawing.family).has_8_bit:
        fields["eight_bit"] = gr.Checkbox(
            False,
            label="8-bit optimizer",
            info="Saves little: there is state for singular values alone.",
            elem_id="train-eight-bit",
        )
    return fields


def _build_watching(services: Services) -> dict[str, Component]:
    usual = services.base.drawing.sampling
    watched = gr.Textbox(
        label="Prompts to watch",
        info=f"Drawn now and then while it trains, one a line, up to {MAX_WATCHED}; empty: the "
        "instance prompt.",
        placeholder="a photo of sks dog on the beach",
        lines=2,
        max_lines=MAX_WATCHED,
        elem_id="train-watched-prompt",
    )
    with gr.Row():
        steps = _number(
            "Sampling steps of these pictures",
            usual.steps,
            f"Fewer are drawn sooner; usual here: {usual.steps}.",
            "watched-steps",
        )
        guidance = _number(
            "Guidance of these pictures",
            usual.guidance_scale,
            f"Usual here: {usual.guidance_scale:g}.",
            "guidance",
            whole=False,
        )
    return {"watched_prompts": watched, "watched_steps": steps, "guidance_scale": guidance}


def _number(
    label: str, value: float | None, info: str, name: str, *, whole: bool = True
) -> gr.Number:
    """A field for a number; its range is for the check to say, at the field."""
    return gr.Number(
        value, precision=0 if whole else None, label=label, info=info, elem_id=f"train-{name}"
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
