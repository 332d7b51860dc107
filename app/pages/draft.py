"""What a visitor has filled in and not yet used, so that a reload of the page does not lose it.

It is kept in the browser, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

_PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def keep_draft(fields: Sequence[Any], page: str) -> Callable[[Callable[..., Any]], Any]:
    """Keep the values of a form's fields in the browser.

    Args:
        fields: of the form.
        page: names the draft.

    Returns:
        Brings a draft back, given the load event of the app.
    """
    draft = gr.BrowserState(storage_key=f"svfit-draft-{page}", secret="svfit")
    collect: dict[str, Any] = {"js": "(...values) => [values]", **_PRIVATE}
    # Not when they get an input: to a text box, a text that is pasted is none.
    gr.on([field.change for field in fields], None, list(fields), draft, **collect)

    def restore(load: Callable[..., Any]) -> Any:
        return load(
            None,
            [draft, *fields],
            list(fields),
            js="(draft, ...now) => draft?.length === now.length ? draft : now",
            **_PRIVATE,
        )

    return restore
