"""The settings of a training as a form: a few in sight, the others folded away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..class_prompts import class_prompt_of
from ..own_words import has_place_for_word, usually_has_word
from ..presets import DEFAULT_PRESET, PRESETS
from ..services import Services
from ..training_choices import TrainingChoices
from .training_advanced import build_advanced

# A class prompt that follows from the instance prompt goes on following; a written one stays.
_FOLLOW = """(news, prompt) =>
  prompt.trim() === "" || prompt === news.before ? news.text : prompt"""


@dataclass(frozen=True)
class TrainingForm:
    """The fields of a training's settings.

    Attributes:
        fields: by the names of `TrainingChoices`; what the base model leaves no choice of is not
            there.
        preset: sets some of them.
        derived: out of sight, the class prompt that follows from the instance prompt.
    """

    fields: dict[str, Component]
    preset: gr.Radio
    derived: gr.JSON

    @property
    def components(self) -> list[Component]:
        """All that decides what is trained."""
        return [*self.fields.values(), self.derived]

    def choices(self, values: Mapping[Component, Any]) -> TrainingChoices:
        """What the fields say."""
        chosen = {name: values[field] for name, field in self.fields.items()}
        if chosen["class_prompt"] == (values[self.derived] or {}).get("text"):
            # It may follow from what was in the field a moment ago.
            chosen["class_prompt"] = ""
        return TrainingChoices(**chosen)

    def filled(self, choices: TrainingChoices) -> list[Any]:
        """Values for `components` that say the same as `choices`."""
        derived = {"text": class_prompt_of(choices.instance_prompt), "before": ""}
        said = dataclasses.asdict(choices) | {"target": list(choices.target)}
        return [*(said[name] for name in self.fields), derived]


def build_form(services: Services) -> TrainingForm:
    """Build the form; choosing how long to train sets what goes with it."""
    fields: dict[str, Any] = {}
    fields["name"] = gr.Textbox(
        label="Name of the adapter",
        info="What you will choose it by on the Generate page.",
        placeholder="rex",
        max_length=64,
        elem_id="train-name",
    )
    fields["instance_prompt"] = gr.Textbox(
        label="Instance prompt",
        info="Names your subject by a rare word and its class; you will use both in prompts later.",
        placeholder="a photo of sks dog",
        elem_id="train-instance-prompt",
    )
    fields["class_prompt"] = gr.Textbox(
        label="Class prompt",
        info="The same without the rare word: what the model is to remember about the class. It "
        "follows from the instance prompt until you write another.",
        placeholder="a photo of a dog",
        elem_id="train-class-prompt",
    )
    preset = gr.Radio(
        [(f"{name.capitalize()} ({p.steps} steps)", name) for name, p in PRESETS.items()],
        value=DEFAULT_PRESET,
        label="How long",
        info="Quick shows whether it works. Balanced suits most subjects. Thorough is closer to "
        "the photos, and less free in other scenes.",
        elem_id="train-preset",
    )
    family = services.base.drawing.family
    if has_place_for_word(family):
        fields["own_word"] = gr.Checkbox(
            usually_has_word(family),
            label="A word of its own",
            info="Learns the rare word, too, from the photos alone: closer to them, while other "
            "things stay as they are; other words of a prompt count a little less. Not for export "
            "to other programs.",
            elem_id="train-own-word",
        )
    with gr.Accordion("Advanced settings", open=False, elem_id="train-advanced"):
        fields |= build_advanced(services)
    derived = gr.JSON({"text": "", "before": ""}, visible=False)
    _wire_choices(preset, fields)
    _wire_derived(derived, fields)
    return TrainingForm(fields, preset, derived)


def _wire_choices(preset: gr.Radio, fields: Mapping[str, Any]) -> None:
    # In the browser alone, so that a click on Train right after finds the new values.
    values = json.dumps(
        {key: [p.steps, p.learning_rate, p.prior_preservation] for key, p in PRESETS.items()}
    )
    own_word, prior = fields.get("own_word"), fields["prior_preservation"]
    preset.input(
        None,
        [preset] if own_word is None else [preset, own_word],
        [fields["steps"], fields["learning_rate"], prior],
        js=f"""(key, own) => {{
          const [steps, rate, prior] = ({values})[key];
          return [steps, rate, prior && !own];
        }}""",
        api_visibility="private",
    )
    if own_word is not None:
        # By a word other things stay as they are; prior preservation would only hold it back.
        own_word.input(
            None,
            [preset, own_word],
            prior,
            js=f"(key, own) => !own && (({values})[key]?.[2] ?? true)",
            api_visibility="private",
        )


def _wire_derived(derived: gr.JSON, fields: Mapping[str, Any]) -> None:
    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Not its input, which what is pasted is none of.
    fields["instance_prompt"].change(
        lambda prompt, news: {"text": class_prompt_of(prompt), "before": news["text"]},
        [fields["instance_prompt"], derived],
        derived,
        queue=False,
        trigger_mode="always_last",
        **private,
    )
    derived.change(
        None, [derived, fields["class_prompt"]], fields["class_prompt"], js=_FOLLOW, **private
    )
