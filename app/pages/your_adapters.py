"""The adapters of the library: download, rename, delete."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import SettingError, at_field
from ..services import Services
from .adapter_choice import AdapterChoice, adapter_choice, news
from .problems import explaining, problem_place


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
            delete = gr.Button("Delete", interactive=False, min_width=120, elem_id="train-delete")
            undo = gr.Button("Undo", visible=False, min_width=120, elem_id="train-undo")
        delete_problem = problem_place("train", "adapter-problem")
        name_ = gr.Textbox(
            label="New name",
            info="Letters, digits, blanks and . + - _",
            placeholder="rex on holiday",
            submit_btn="Rename",
            max_length=64,
            elem_id="train-rename",
        )
        rename_problem = problem_place("train", "rename-problem")

    def usable(name: str | None) -> tuple[Any, Any]:
        path = str(services.exports.adapter_file(name, library.path(name))) if name else None
        return gr.update(value=path, interactive=bool(path)), gr.update(interactive=bool(path))

    def renamed(name: str | None, new_name: str) -> tuple[Any, Any, str]:
        old = _chosen(name)
        with at_field("rename"):
            new = library.rename(old, new_name)
        return *news(services, instead={old: new}), ""

    def deleted(name: str | None) -> tuple[Any, ...]:
        library.delete(_chosen(name))
        return *news(services), name, gr.update(value=f"Undo deleting “{name}”", visible=True)

    def restored(name: str | None) -> tuple[Any, ...]:
        back = library.restore(name or "")
        return *news(services, offered=back), None, gr.update(visible=False)

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    field, components = choice.field, choice.components
    explaining(field.change, usable, field, [download, delete], delete_problem, **quick)
    explaining(name_.submit, renamed, [field, name_], [*components, name_], rename_problem, **quick)
    gone = gr.State(None)
    changed = [*components, gone, undo]
    explaining(delete.click, deleted, field, changed, delete_problem, **quick)
    explaining(undo.click, restored, gone, changed, delete_problem, **quick)
    return choice


def _chosen(name: str | None) -> str:
    if not name:
        raise SettingError("Choose an adapter first.", "adapter")
    return name
