"""The whole app: four tabs, one look, one queue."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr

from ..album import FAVOURITES
from ..entrance import lifespan
from ..entrance.login import checker
from ..entrance.places import QUEUE_SIZE
from ..services import Services
from ..visitors import STRANGER, acting_as
from . import compare, generate, inspect, train
from .base_picker import build_base_picker
from .draft import build_memory
from .try_it import wire_try_it

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")

THEME = gr.themes.Default(
    primary_hue=gr.themes.colors.teal,
    secondary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    font=_FONTS,
    font_mono=_MONO,
    radius_size=gr.themes.sizes.radius_md,
).set(
    # Texts against their background: a contrast of 4.5 to 1 at least, in light and in dark.
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_600",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)

_SESSIONS = 500
"""Pages whose state is kept, of which each takes some memory; the oldest is forgotten."""

_STYLE = Path(__file__).with_name("style.css")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
# Gradio measures its tabs once, at times before the page has its width and its style, and hides
# those beyond the edge; it measures again when the window's size changes.
_HEAD = f"""
<script>{_SCRIPT}</script>
<style>
@media (max-width: 760px) {{ .tab-container button {{ padding: 0 .6rem !important; }} }}
</style>
<script>
const measureAgain = () => window.dispatchEvent(new Event("resize"));
new ResizeObserver(measureAgain).observe(document.documentElement);
</script>
"""


def build_app(services: Services) -> gr.Blocks:
    """All pages as one app, to be launched with `launch_settings`."""
    # What pages begin with everyone sees; what is a visitor's own comes with their first request.
    for_all = nullcontext() if services.settings.is_for_one_user else acting_as(STRANGER)
    with (
        for_all,
        gr.Blocks(
            title="svfit-diffusion", analytics_enabled=False, delete_cache=(3600, 86400)
        ) as app,
    ):
        gr.Markdown(
            "# svfit-diffusion\nTeach a picture model your subject, then draw it.",
            elem_id="title",
        )
        build_base_picker(services)
        memory = build_memory()
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate") as tab:
                generate_parts = generate.build(services, tab)
            with gr.Tab("Compare", id="compare") as tab:
                compare.build(services, tab)
            with gr.Tab("Train", id="train") as tab:
                train_page = train.build(services, tab, memory)
            with gr.Tab("Inspect", id="inspect") as tab:
                inspect.build(services, tab)
        if train_page is not None:
            wire_try_it(services, tabs, generate_parts, train_page)
            for restore in train_page.restore:
                restore(app.load)
        _start_text_boxes_empty(app)
    # Closed: routes that would go past the queue.
    return app.queue(max_size=QUEUE_SIZE, api_open=False)


def _start_text_boxes_empty(app: gr.Blocks) -> None:
    """Let text boxes without a text hold an empty one, not None.

    Browsers send the value a component was built with until it is first shown, as in an accordion
    that nobody opened. Text boxes alone hold another value from then on.
    """
    for block in app.blocks.values():
        if isinstance(block, gr.Textbox) and block.value is None:
            block.value = ""


def launch_settings(services: Services) -> dict[str, Any]:
    """Arguments of `Blocks.launch`: the look, and what the app lets out and in."""
    settings = services.settings
    return {
        "theme": THEME,
        "css_paths": _STYLE,
        "head": _HEAD,
        "server_name": settings.host,
        "server_port": settings.port,
        "share": settings.share,
        "auth": checker(*settings.auth) if settings.auth else None,
        "app_kwargs": {"lifespan": lifespan(services.hosts, settings, services.limits)},
        "state_session_capacity": _SESSIONS,
        "run_history": False,
        "enable_monitoring": False,
        "allowed_paths": [str(settings.pictures.resolve())],
        # Even if it lies where files are handed out. The list of favourites names pictures.
        "blocked_paths": [
            str(path.resolve()) for path in (settings.trainings, settings.pictures / FAVOURITES)
        ],
        "max_file_size": services.limits.max_file_bytes,
        "footer_links": ["api"],
        "ssr_mode": False,
        "quiet": True,
    }
