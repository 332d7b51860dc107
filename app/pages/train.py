"""The Train page: photos, a few settings, and a training that one can watch, leave and find again.

What is shown of a training is asked of `TrainingJobs` again and again, so it makes no difference
which page started it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from app.errors import SettingError
from app.pages.messages import plain_errors, status
from app.pages.photo_drop import photo_drop
from app.pages.your_adapters import adapter_choice, your_adapters
from app.photos import CroppedPhoto
from app.plots import to_svg, training_curves
from app.services import Services
from app.training_jobs import PRESETS, Stage, TrainingStatus
from svfit_diffusion.training.config import TrainingConfig

_POLL_SECONDS = 1.0
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


def build(services: Services, tab: gr.Tab) -> None:
    """Build the page inside the current tab."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            photos_ = photo_drop(services.limits)
            form = _build_form(services)
            with gr.Row():
                go = gr.Button(
                    "Train", variant="primary", scale=2, min_width=120, elem_id="train-go"
                )
                halt = gr.Button(
                    "Stop and keep", interactive=False, min_width=160, elem_id="train-stop"
                )
        with gr.Column(scale=6, min_width=320):
            view = _build_view()
            choice_ = your_adapters(services, tab)

    def show(seen: dict[str, Any] | None) -> tuple[Any, ...]:
        """What has changed since what the browser says it has `seen`."""
        now = services.jobs.status()
        before = seen if seen and now and seen["run"] == now.run else {}
        if now is None or before.get("revision") == now.revision:
            return (gr.skip(),) * 7
        samples, kept = len(now.samples), now.kept
        return (
            {"run": now.run, "revision": now.revision, "samples": samples, "kept": kept},
            _line(now),
            _curves(now.losses, now.drifts, now.total_steps) if now.step else "",
            gr.skip() if before.get("samples") == samples else _samples(now),
            gr.skip() if before else gr.update(value=list(now.photos), visible=True),
            gr.update(interactive=not now.stage.is_over),
            adapter_choice(services, now.adapter_name)
            if kept and not before.get("kept")
            else gr.skip(),
        )

    def start(values: dict[Component, Any]) -> None:
        with plain_errors():
            photos: list[CroppedPhoto] = values[photos_]
            config = form.config(values)
            services.jobs.start(values[form.name], [photo.square() for photo in photos], config)

    def stop() -> None:
        services.jobs.stop()
        gr.Info("The training stops after this step and keeps what it has learned.")

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    go.click(start, {photos_, *form.components}, None, **private)
    halt.click(stop, None, None, queue=False, **private)
    # One tick at a time writes what is watched, and nothing else does, so that no late answer takes
    # the place of a newer one. What was seen is kept in the browser: a phone that sleeps misses
    # answers, and is to ask again.
    seen_ = gr.JSON(visible=False)
    gr.Timer(_POLL_SECONDS).tick(
        show,
        seen_,
        [seen_, *view.components, halt, choice_],
        queue=False,
        trigger_mode="once",
        **private,
    )


@dataclass(frozen=True)
class _Form:
    """The fields of a training's settings."""

    name: gr.Textbox
    instance_prompt: gr.Textbox
    class_prompt: gr.Textbox
    steps: gr.Number
    learning_rate: gr.Number
    rank: gr.Textbox
    target: gr.Dropdown
    train_text_encoder: gr.Checkbox
    prior_preservation: gr.Checkbox
    class_images: gr.Number
    resolution: gr.Number
    seed: gr.Number
    watched_prompt: gr.Textbox
    guidance_scale: gr.Number

    @property
    def components(self) -> list[Component]:
        """All fields."""
        return list(vars(self).values())

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
            train_text_encoder=values[self.train_text_encoder],
            with_prior_preservation=values[self.prior_preservation],
            num_class_images=int(number(self.class_images)),
            resolution=int(number(self.resolution)),
            seed=int(number(self.seed)) or None,
            validation_prompt=[values[self.watched_prompt].strip() or prompt],
            validation_steps=max(1, steps // _SAMPLES_PER_RUN),
            guidance_scale=number(self.guidance_scale),
            num_inference_steps=20,
        )


def _build_form(services: Services) -> _Form:
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
) -> _Form:
    start = PRESETS[_DEFAULT_PRESET]
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
    train_text_encoder = gr.Checkbox(
        True,
        label="Train the text encoder too",
        info="Gives the rare word a meaning: subjects are learned sooner and better.",
        elem_id="train-text-encoder",
    )
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
            services.base.native_size,
            precision=0,
            minimum=16,
            maximum=services.limits.max_side,
            label="Resolution",
            info=f"Side in pixels; best the base model's own, {services.base.native_size}.",
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
    with gr.Row():
        watched_prompt = gr.Textbox(
            label="Prompt to watch",
            info="Drawn now and then while it trains; empty: the instance prompt.",
            placeholder="a photo of sks dog on the beach",
            elem_id="train-watched-prompt",
        )
        guidance_scale = gr.Number(
            2.5,
            minimum=0,
            maximum=30,
            label="Guidance of these pictures",
            info="2 to 3 on the sample base, 5 to 9 on Stable Diffusion.",
            elem_id="train-guidance",
        )
    return _Form(
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
    )


@dataclass(frozen=True)
class _View:
    """Where a training is watched."""

    line: gr.HTML
    curves: gr.HTML
    samples: gr.Gallery
    photos: gr.Gallery

    @property
    def components(self) -> list[Component]:
        """All parts."""
        return list(vars(self).values())


def _build_view() -> _View:
    return _View(
        line=gr.HTML(
            status("Nothing is being trained. A training goes on when you leave this page."),
            elem_id="train-status",
        ),
        curves=gr.HTML(elem_id="train-curves"),
        samples=gr.Gallery(
            label="The prompt you watch, by step",
            format="png",
            columns=4,
            height="auto",
            interactive=False,
            visible=False,
            elem_id="train-samples",
            elem_classes="compact",
        ),
        photos=gr.Gallery(
            label="Learning from",
            format="png",
            columns=8,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=False,
            elem_id="train-learned-photos",
            elem_classes="compact",
        ),
    )


def _line(now: TrainingStatus) -> str:
    if now.stage.is_over:
        return status(now.message)
    name = f"“{now.adapter_name}”"
    if now.stage is not Stage.TRAINING or not now.step:
        return status(f"{name}: {now.message}", now.step, now.total_steps)
    left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
    return status(f"{name}: step {now.step} of {now.total_steps}{left}", now.step, now.total_steps)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def _samples(now: TrainingStatus) -> Any:
    """The pictures with captions, the newest first."""
    tiles = [
        (image, str(sample.step) if sample.step else "base")
        for sample in reversed(now.samples)
        for image in sample.images
    ]
    return gr.update(value=tiles, visible=bool(tiles))


@functools.lru_cache(maxsize=2)  # every page that watches asks for the same
def _curves(losses: tuple[float, ...], drifts: tuple[float, ...], total_steps: int) -> str:
    description = (
        f"Loss and drift of the singular values over {len(losses)} of {total_steps} steps: the "
        f"drift has come to {drifts[-1]:.1%}."
    )
    return to_svg(training_curves(losses, drifts, total_steps), description)
