"""The adapters of the library: download, rename, delete."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..services import Services
from .adapter_choice import AdapterChoice, adapter_choice, news
from .messages import plain_errors

_CONFIRM = "(name) => name && confirm(`Delete “${name}” for good?`) ? name : null"


def your_adapters(services: Services, tab: gr.Tab) -> AdapterChoice:
    """Build the section.

    Returns:
        The choice of an adapter, to be told of news after a training.
    """
    library = services.library
    with gr.Accordion("Your adapters", open=True, elem_id="train-adapters"):
        choice = adapter_choice(
            services,
            tab,
            label="Adapter",
            info="What was trained here or added. All of them can be used on the Generate page.",
            elem_id="train-adapter",
        )
        with gr.Row():
            download = gr.DownloadButton(
                "Download", interactive=False, min_width=120, elem_id="train-download"
            )
            delete = gr.Button("Delete", variant="stop", min_width=120, elem_id="train-delete")
        name_ = gr.Textbox(
            label="New name",
            info="Letters, digits, blanks and . + - _",
            placeholder="rex on holiday",
            submit_btn="Rename",
            max_length=64,
            elem_id="train-rename",
        )

    def downloadable(name: str | None) -> Any:
        with plain_errors():
            path = str(services.exports.adapter_file(name, library.path(name))) if name else None
        return gr.update(value=path, interactive=path is not None)

    def renamed(name: str | None, new_name: str) -> tuple[Any, Any, str]:
        with plain_errors():
            old = _chosen(name)
            return *news(services, instead={old: library.rename(old, new_name)}), ""

    def deleted(name: str | None) -> tuple[Any, Any]:
        if name is None:
            return gr.skip(), gr.skip()
        with plain_errors():
            library.delete(name)
        return news(services)

    private: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    choice.field.change(downloadable, choice.field, download, **private)
    name_.submit(renamed, [choice.field, name_], [*choice.components, name_], **private)
    delete.click(deleted, choice.field, choice.components, js=_CONFIRM, **private)
    return choice


def _chosen(name: str | None) -> str:
    if not name:
        raise gr.Error("Choose an adapter first.", title="That did not work", print_exception=False)
    return name
