"""Errors that stand in place: a sentence where the visitor looks, and a mark at the field at fault.

Gradio shows errors as toasts over the page, and some not at all. So no event of a page fails: what
goes wrong is one more thing that it gives back, and nothing else of the page changes.
"""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from .messages import sentence, status

EACH_CHOICE: dict[str, Any] = {"trigger_mode": "multiple"}
"""Options of an event that chooses a picture. By default Gradio drops a choice while the one before
is not answered, and what is done then is done to another picture than the one that is marked."""

_NOT_DONE = "Not done."


def problem_place(page: str, name: str = "problem") -> gr.HTML:
    """Build the place of errors, empty and out of sight until there is one.

    Args:
        page: prefix of the ids of the fields that may be at fault.
        name: of this place among the page's.
    """
    place = gr.HTML("", padding=False, elem_id=f"{page}-{name}", elem_classes="problem-place")
    place.change(
        None,
        place,
        None,
        js=f"text => svfit.mark({json.dumps(page)}, text)",
        api_visibility="private",
    )
    return place


def told(text: str, field: str = "") -> str:
    """A problem as HTML.

    Args:
        text: one sentence, plain text.
        field: which field is at fault.
    """
    # The time makes each of them news.
    return (
        f'<div class="problem" role="alert" data-field="{html.escape(field)}" '
        f'data-at="{time.time_ns()}">{html.escape(text)}</div>'
    )


def explaining(
    listen: Callable[..., Any],
    handler: Callable[..., Any],
    inputs: Any,
    outputs: Component | Sequence[Component] | None,
    place: gr.HTML,
    *,
    line: gr.HTML | None = None,
    **options: Any,
) -> Any:
    """Register an event of a page, whose errors stand in their place.

    Args:
        listen: registers it, such as `button.click` or `functools.partial(gr.on, triggers)`.
        handler: gives values for `outputs`, once or again and again; what it raises is shown.
        inputs: as Gradio takes them.
        outputs: stay as they are where it raises.
        place: where a problem stands; emptied where there is none.
        line: the status line among the outputs, which says so where nothing came of it.
        options: of the event.
    """
    several = [] if outputs is None else outputs
    targets = [several] if isinstance(several, gr.blocks.Block) else list(several)
    failed = [status(_NOT_DONE) if target is line else gr.skip() for target in targets]
    wrapped = _explained(handler, failed)
    # Named apart, for a private event, too, takes its name from what programs may call.
    name = f"page_{handler.__name__}"
    return listen(
        wrapped, inputs, [*targets, place], api_name=name, api_visibility="private", **options
    )


def _explained(handler: Callable[..., Any], failed: Sequence[Any]) -> Callable[..., Any]:
    """The handler with the problem as one more of its results; `failed` are the others then."""

    def good(result: Any) -> tuple[Any, ...]:
        values = () if not failed else (result,) if len(failed) == 1 else result
        return (*values, "")

    def bad(error: Exception) -> tuple[Any, ...]:
        return (*failed, told(*sentence(error)))

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def explained(*args: Any) -> Iterator[tuple[Any, ...]]:
            try:
                with contextlib.closing(handler(*args)) as results:
                    for result in results:
                        yield good(result)
            except Exception as error:
                yield bad(error)

        return explained

    @functools.wraps(handler)
    def explained_once(*args: Any) -> tuple[Any, ...]:
        try:
            return good(handler(*args))
        except Exception as error:
            return bad(error)

    return explained_once
