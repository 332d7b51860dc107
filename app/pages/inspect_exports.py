"""Downloads of an adapter in every form there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..exports import Form
from ..services import Services
from .inspect_parts import QUICK
from .problems import explaining, problem_place

_BUTTONS = {
    Form.LORA: "As a LoRA",
    Form.DENSE: "As dense changes",
    Form.FOLDER: "Merged, a diffusers folder",
    Form.CHECKPOINT: "Merged, one checkpoint",
}
_CHECKPOINTS = ("Stable Diffusion", "Stable Diffusion XL")
"""Kinds of base models that have been published as one file each."""


def build_exports(services: Services, adapter_: gr.Dropdown) -> None:
    """Build the buttons, for the adapter chosen."""
    gr.HTML(
        "The adapter file is all that this app and diffusers need beside the base model. ComfyUI, "
        "Forge and InvokeAI take the LoRA or the dense changes, A1111 the LoRA; a merged model is "
        "whole, for programs that know nothing of adapters.",
        elem_classes="hint",
    )
    forms = [form for form in Form if form is not Form.CHECKPOINT or _has_checkpoints(services)]
    with gr.Row():
        file = gr.DownloadButton(
            "Adapter file",
            size="sm",
            interactive=False,
            min_width=140,
            elem_id="inspect-download",
        )
        buttons = {
            form: gr.Button(
                _BUTTONS[form],
                size="sm",
                interactive=False,
                min_width=140,
                elem_id=f"inspect-{form.value}",
            )
            for form in forms
        }
    built = gr.DownloadButton(visible=False, variant="primary", elem_id="inspect-built")
    problem = problem_place("inspect", "export-problem")

    def chosen(name: str | None) -> tuple[Any, ...]:
        path = services.exports.adapter_file(name, services.library.path(name)) if name else None
        usable = gr.update(interactive=path is not None)
        return (
            gr.update(value=path and str(path), interactive=path is not None),
            gr.update(visible=False),
            *[usable] * len(buttons),
        )

    def builder(form: Form) -> Callable[[str | None], Any]:
        def build(name: str | None) -> Any:
            path = services.exports.written(form, name or "", services.library.path(name or ""))
            size = path.stat().st_size / 2**20
            label = f"Download {path.name} ({size:.{0 if size >= 10 else 1}f} MiB)"
            return gr.update(value=str(path), label=label, visible=True)

        return build

    outputs = [file, built, *buttons.values()]
    explaining(adapter_.change, chosen, adapter_, outputs, problem, **QUICK)
    for form, button in buttons.items():
        explaining(
            button.click,
            builder(form),
            adapter_,
            built,
            problem,
            concurrency_id="exports",
            concurrency_limit=1,
        )


def _has_checkpoints(services: Services) -> bool:
    return services.base.kind in _CHECKPOINTS
