"""Form parts that several pages share: the adapter mixer and the sampling settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from svfit_diffusion.serving.picture import MAX_SEED

from ..first_steps import PLAIN_PROMPT
from ..picture import (
    OWN_SCHEDULER,
    PictureSettings,
    whole,
)
from ..services import Services
from .adapter_choice import AdapterChoice, adapter_choice

# A slider each for the first of the adapters chosen, as far as there are sliders.
_SHOW_SLIDERS = """(names, strengths) => {
  const known = name => Object.hasOwn(strengths, name) ? strengths[name] : 1;
  const slider = name => name === undefined
    ? {__type__: "update", visible: false}
    : {__type__: "update", visible: true, label: `Strength of ${name}`, value: known(name)};
  return [
    Object.fromEntries(names.map(name => [name, known(name)])),
    ...Array.from({length: %d}, (_, i) => slider(names[i])),
  ];
}"""
# A prompt that nobody wrote gives way to the one that the adapter was trained with.
_SUGGEST_PROMPT = """(names, {prompts}, prompt) => {
  const [name, ...others] = names;
  const own = prompts[name];
  const [adapter, suggested, plain] = %s;
  const first = name === adapter ? [] : [suggested];
  const unwritten = ["", plain, ...first, ...Object.values(prompts)].includes(prompt.trim());
  return others.length || !own || !unwritten ? prompt : own;
}"""
_KEEP_STRENGTH = "(names, strengths, strength) => ({...strengths, [names[%d]]: strength})"


@dataclass(frozen=True)
class Mixer:
    """Adapters with a strength each. All of it happens in the browser, so that nothing a visitor
    sets is late or overwritten.

    Attributes:
        choice: which adapters, for choosing.
        strengths: strength by name, for reading: `{"rex": 1.0}`.
        sliders: as many as adapters can be chosen; those in use are shown.
    """

    choice: AdapterChoice
    strengths: gr.JSON
    sliders: list[gr.Slider]

    @property
    def components(self) -> list[Component]:
        """What is to be set by `mixer_values`; `show_sliders` after that."""
        return [self.choice.field, self.strengths]

    def show_sliders(self, after: Callable[..., Any]) -> None:
        """Let the sliders show what is chosen, and its strengths.

        Args:
            after: registers what happens after an event, such as `names.change`.
        """
        after(
            None,
            self.components,
            [self.strengths, *self.sliders],
            js=_SHOW_SLIDERS % len(self.sliders),
            api_visibility="private",
        )


def mixer(services: Services, tab: gr.Tab, page: str, prompt: gr.Textbox) -> Mixer:
    """Build the adapter choice and its sliders; the choices follow the library.

    Args:
        tab: the page's tab.
        page: prefix of element ids.
        prompt: to be set to that of an adapter that is chosen alone.
    """
    first = services.examples()[0]
    start = first.adapters
    most = services.limits.max_adapters
    choice = adapter_choice(
        services,
        tab,
        start,
        multiselect=True,
        max_choices=most,
        label="Adapters",
        info="Subjects that were trained. Choose none for the base model, or mix several.",
        elem_id=f"{page}-adapters",
    )
    strengths = gr.JSON(dict.fromkeys(start, 1.0), label="Adapters", visible=False)
    sliders = [_strength_slider(start[i] if i < len(start) else None) for i in range(most)]
    for i, slider in enumerate(sliders):
        slider.input(
            None,
            [choice.field, strengths, slider],
            strengths,
            js=_KEEP_STRENGTH % i,
            api_visibility="private",
        )
    mixer_ = Mixer(choice, strengths, sliders)
    mixer_.show_sliders(choice.field.change)
    choice.field.input(
        None,
        [choice.field, choice.news, prompt],
        prompt,
        js=_SUGGEST_PROMPT % json.dumps([first.adapter, first.prompt, PLAIN_PROMPT]),
        api_visibility="private",
    )
    return mixer_


def _strength_slider(name: str | None) -> gr.Slider:
    return gr.Slider(
        -2,
        2,
        value=1.0,
        step=0.05,
        label=f"Strength of {name}" if name else "Strength",
        info="0 is the base model, 1 as trained, below 0 the opposite; usual: 0.5 to 1.2.",
        visible=name is not None,
        interactive=True,
        elem_classes="strength",
    )


def mixer_values(services: Services, adapters: Mapping[str, float]) -> tuple[Any, Any]:
    """Values for `Mixer.components`; adapters that are not in the library are left out."""
    present = {n: s for n, s in adapters.items() if n in services.library.names()}
    return list(present), present


@dataclass(frozen=True)
class Sampling:
    """How a picture is drawn. What the base model leaves no choice of is a state, out of sight."""

    steps: gr.Slider
    guidance_scale: gr.Slider
    width: gr.Slider
    height: gr.Slider
    scheduler: gr.Dropdown | gr.State
    negative_prompt: gr.Textbox | gr.State

    @property
    def numbers(self) -> list[Component]:
        """Steps, guidance, width, height and scheduler, the order in which callbacks take them."""
        return [self.steps, self.guidance_scale, self.width, self.height, self.scheduler]


def sampling(services: Services, page: str) -> Sampling:
    """Build the fields for steps, guidance, size, scheduler and negative prompt."""
    usual = services.base.drawing.sampling
    effect = "At 1 or less the negative prompt has no effect." if usual.negative_prompt else ""
    return Sampling(
        steps=gr.Slider(
            1,
            services.limits.max_steps,
            value=usual.steps,
            step=1,
            label="Steps",
            info=f"More steps, finer pictures, longer waiting; usual here: {usual.steps}.",
            elem_id=f"{page}-steps",
        ),
        guidance_scale=gr.Slider(
            0,
            15,
            value=usual.guidance_scale,
            step=0.1,
            label="Guidance",
            info=f"How strictly the prompt is followed; usual here: {usual.guidance_scale:g}. "
            f"{effect}",
            elem_id=f"{page}-guidance",
        ),
        width=_side(services, page, "Width"),
        height=_side(services, page, "Height"),
        scheduler=_scheduler(services, page),
        negative_prompt=gr.Textbox(
            "",
            label="Negative prompt",
            info="What the picture should not show; may stay empty.",
            elem_id=f"{page}-negative",
        )
        if usual.negative_prompt
        else gr.State(""),
    )


def _side(services: Services, page: str, label: str) -> gr.Slider:
    drawing, limit = services.base.drawing, services.limits.max_side
    side, multiple = drawing.native_size, drawing.size_multiple
    return gr.Slider(
        min(side, 4 * multiple),
        min(4 * side, limit // multiple * multiple),
        value=min(side, limit),
        step=multiple,
        label=label,
        info=f"In pixels. The base model was trained at {side}; far from it things repeat.",
        elem_id=f"{page}-{label.lower()}",
    )


def _scheduler(services: Services, page: str) -> gr.Dropdown | gr.State:
    names = services.base.drawing.schedulers
    if len(names) == 1:
        return gr.State(OWN_SCHEDULER)
    return gr.Dropdown(
        list(names),
        value=OWN_SCHEDULER,
        label="Scheduler",
        info="The way from noise to picture. “Euler ancestral” adds noise at every step.",
        elem_id=f"{page}-scheduler",
    )


def prompt_box(services: Services, page: str) -> gr.Textbox:
    """Build the field for the prompt."""
    return gr.Textbox(
        services.examples()[0].prompt,
        lines=1,
        max_lines=4,
        label="Prompt",
        info="What the picture shows. A subject goes by the words it was trained with.",
        placeholder="a photo of …",
        elem_id=f"{page}-prompt",
    )


def seed_box(page: str) -> gr.Number:
    """Build the field for the seed."""
    return gr.Number(
        1,
        minimum=0,
        maximum=MAX_SEED,
        precision=0,
        label="Seed",
        info="The noise it starts from: the same seed and settings give the same picture.",
        elem_id=f"{page}-seed",
    )


def picture_settings(
    prompt: str,
    negative_prompt: str,
    adapters: Mapping[str, float] | None,
    steps: float,
    guidance_scale: float,
    width: float,
    height: float,
    scheduler: str,
    seed: float,
) -> PictureSettings:
    """Settings of the values of a form; whatever is wrong with them is for the check to say."""
    return PictureSettings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        adapters=adapters or {},
        steps=whole(steps),
        guidance_scale=guidance_scale,
        width=whole(width),
        height=whole(height),
        scheduler=scheduler,
        seed=whole(seed),
    )


def small_pictures(label: str, elem_id: str) -> gr.Gallery:
    """Build a gallery of small pictures, one of which is chosen by a click."""
    return gr.Gallery(
        label=label,
        format="png",
        columns=6,
        fit_columns=False,
        height="auto",
        allow_preview=False,
        interactive=False,
        elem_id=elem_id,
        elem_classes="compact",
    )
