"""What a visitor has filled in and not yet used, so that a reload of the page does not lose it.

It is kept in the browser, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

_PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def keep_draft(
    fields: Sequence[Component], set_by_others: Sequence[Any], page: str
) -> Callable[[Callable[..., Any]], Any]:
    """Keep the values of a form's fields in the browser.

    Args:
        fields: of the form.
        set_by_others: events after which one of them has another value that nobody typed.
        page: names the draft.

    Returns:
        Brings a draft back, given the load event of the app.
    """
    draft = gr.BrowserState(storage_key=f"svfit-draft-{page}", secret="svfit")
    collect: dict[str, Any] = {"js": "(...values) => [values]", **_PRIVATE}
    typed = [field.input for field in fields if hasattr(field, "input")]
    gr.on(typed, None, list(fields), draft, **collect)
    for event in set_by_others:
        event.then(None, list(fields), draft, **collect)

    def restore(load: Callable[..., Any]) -> Any:
        return load(
            None,
            [draft, *fields],
            list(fields),
            js="(draft, ...now) => draft?.length === now.length ? draft : now",
            **_PRIVATE,
        )

    return restore
