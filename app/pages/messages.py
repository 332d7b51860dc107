"""What visitors read: errors as one sentence, and the line that says what is going on."""

from __future__ import annotations

import functools
import html
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from svfit_diffusion.errors import StorageError, SVFitError

from ..errors import AppError, first_line
from ..visits import Progress

logger = logging.getLogger(__name__)

_UNEXPECTED = "Something went wrong here; the server's log says what."
_NO_ROOM = "The server has no room for this, or may not write it; its log says where."


def sentence(error: Exception) -> tuple[str, str]:
    """An error as one plain sentence for the visitor, and the field at fault, `""` if none is. The
    log gets the trace.
    """
    if isinstance(error, gr.Error):
        return error.message, ""
    if isinstance(error, StorageError):  # which names a path
        logger.error("not written", exc_info=error)
        return _NO_ROOM, ""
    if isinstance(error, SVFitError):
        logger.warning("refused: %s", error, exc_info=True)
        return first_line(error), error.field if isinstance(error, AppError) else ""
    logger.error("unexpected", exc_info=error)
    return _UNEXPECTED, ""


def for_programs(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler as programs call it: what it raises reaches them as one plain sentence. Pages
    have `problems.explaining`.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def called(*args: Any) -> Iterator[Any]:
            with _plain_errors():
                yield from handler(*args)

        return called

    @functools.wraps(handler)
    def called_once(*args: Any) -> Any:
        with _plain_errors():
            return handler(*args)

    return called_once


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text, _ = sentence(error)
        raise gr.Error(text, print_exception=False) from error


def status(text: str, done: int = 0, total: int = 0) -> str:
    """The status line as HTML: a sentence, and a bar while there is something to wait for.

    Args:
        text: the sentence, plain text.
        done: how much is done.
        total: of how much; 0 for no bar.
    """
    bar = (
        f'<progress value="{done}" max="{total}" aria-label="Progress"></progress>' if total else ""
    )
    return f'<div class="status" role="status">{bar}<span>{html.escape(text)}</span></div>'


def said(text: str) -> str:
    """A script that gives the status line of a sentence at once, in the browser."""
    return f"() => {json.dumps(status(text))}"


def drawing(progress: Progress) -> str:
    """The status line while pictures are drawn."""
    if not progress.step:
        return status("Getting ready …", 0, progress.steps)
    which = (
        f"Batch {progress.batch} of {progress.batches}, step" if progress.batches > 1 else "Step"
    )
    return status(f"{which} {progress.step} of {progress.steps}", progress.step, progress.steps)


def watch(running: Any, halt: gr.Button, line: gr.HTML) -> None:
    """Let a button stop a running event; its status line says so, and likewise after an error."""
    stopped = halt.click(None, cancels=[running], queue=False, api_visibility="private")
    # Browsers may take a stop for a failure, so both say the same.
    for ended in (stopped.then, running.failure):
        ended(lambda: status("Stopped."), None, line, queue=False, api_visibility="private")
