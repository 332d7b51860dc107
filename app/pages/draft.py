"""What a visitor has filled in and not yet used, so that a reload of the page does not lose it.

It is kept in the browser, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

_PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Memory:
    """What a browser remembers of the Train page.

    Attributes:
        form: values of the form's fields.
        photos: a `PhotoShelf` key.
    """

    form: gr.BrowserState
    photos: gr.BrowserState


def build_memory() -> Memory:
    """Build it, outside of all tabs: what is in one is not there before the tab is opened."""
    # The server has nothing to hide from a browser in what its visitor wrote.
    return Memory(
        gr.BrowserState(storage_key="svfit-draft", secret="svfit"),
        gr.BrowserState(storage_key="svfit-photos", secret="svfit"),
    )


def keep_draft(
    fields: Sequence[Any], draft: gr.BrowserState
) -> Callable[[Callable[..., Any]], Any]:
    """Keep the values of a form's fields in the browser.

    Args:
        fields: of the form.
        draft: where to.

    Returns:
        Brings a draft back, given the load event of the app.
    """
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
