"""Which base model is loaded, what it is good for, and how to use another."""

from __future__ import annotations

import html

import gradio as gr

from ..bases import bases_at_hand, described
from ..errors import SettingError
from ..public_names import public_name
from ..services import Services
from .messages import said, status
from .problems import explaining, problem_place

_RELOAD = """async (line) => {
  if (!line.includes("loaded")) return;
  const up = () => fetch(location.href, {cache: "no-store"}).then(r => r.ok, () => false);
  while (await up()) await new Promise(wait => setTimeout(wait, 100));
  while (!await up()) await new Promise(wait => setTimeout(wait, 300));
  location.reload();
}"""
"""Wait until the app has gone, and is back with the other base model."""


def build_base_picker(services: Services) -> None:
    """Build the line below the title, and for whoever runs the app the choice of another base."""
    about = html.escape(described(services.base))
    gr.HTML(f"Base model: {about}", padding=False, elem_id="base", elem_classes="hint")
    if not services.settings.is_for_one_user:
        return
    with gr.Accordion("Use another base model", open=False, elem_id="base-picker"):
        source = gr.Dropdown(
            [(public_name(name), name) for name in bases_at_hand()],
            value=None,
            allow_custom_value=True,
            label="Base model",
            info="One at hand, or any other: a folder, a .safetensors or .ckpt file, or an id on "
            "huggingface.co such as stable-diffusion-v1-5/stable-diffusion-v1-5. It is used with "
            "the settings of its kind; adapters of other bases wait in the library.",
            elem_id="base-source",
        )
        go = gr.Button("Load", elem_id="base-load")
        line = gr.HTML(status(""), padding=False, elem_id="base-status")
        problem = problem_place("base")

    def load(wanted: str | None) -> str:
        if not wanted or not wanted.strip():
            raise SettingError("Choose a base model, or write where it is.", "source")
        now = services.jobs.status()
        if services.jobs.waiting() or (now and not now.stage.is_over):
            raise SettingError("A training is under way; wait for its end, or stop it first.")
        services.succession.prepare(wanted.strip())
        return status(f"{public_name(wanted.strip())} is loaded; this page opens again with it.")

    waiting = said("Loading; a large one takes minutes …")
    go.click(None, None, line, js=waiting, api_visibility="private")
    loaded = explaining(go.click, load, source, line, problem, line=line)
    loaded.then(None, line, None, js=_RELOAD, api_visibility="private")
