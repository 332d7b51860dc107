"""The adapters of the library: download, rename, delete."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..services import Services
from .messages import plain_errors

_CONFIRM = "(name) => name && confirm(`Delete “${name}” for good?`) ? name : null"


def your_adapters(services: Services, tab: gr.Tab) -> gr.Dropdown:
    """Build the section; its list follows the library whenever the tab is opened.

    Returns:
        The choice of an adapter, to be updated with `adapter_choice` after a training.
    """
    library = services.library
    with gr.Accordion("Your adapters", open=True, elem_id="train-adapters"):
        choice_ = gr.Dropdown(
            library.names(),
            value=None,
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
            path = str(library.path(name)) if name else None
        return gr.update(value=path, interactive=path is not None)

    def renamed(name: str | None, new_name: str) -> tuple[Any, str]:
        with plain_errors():
            return adapter_choice(services, library.rename(_chosen(name), new_name)), ""

    def deleted(name: str | None) -> Any:
        if name is None:
            return gr.skip()
        with plain_errors():
            library.delete(name)
        return adapter_choice(services, None)

    private: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    choice_.change(downloadable, choice_, download, **private)
    name_.submit(renamed, [choice_, name_], [choice_, name_], **private)
    delete.click(deleted, choice_, choice_, js=_CONFIRM, **private)
    tab.select(lambda name: adapter_choice(services, name), choice_, choice_, **private)
    return choice_


def adapter_choice(services: Services, name: str | None) -> Any:
    """An update of a choice of one adapter: the library as it is, with `name` chosen if there."""
    names = services.library.names()
    return gr.update(choices=names, value=name if name in names else None)


def _chosen(name: str | None) -> str:
    if not name:
        raise gr.Error("Choose an adapter first.", title="That did not work", print_exception=False)
    return name
