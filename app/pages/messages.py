"""What visitors read: errors as one sentence, and the line that says what is going on."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from svfit_diffusion.errors import StorageError, SVFitError

from ..visits import Progress

logger = logging.getLogger(__name__)

_UNEXPECTED = "Something went wrong here; the server's log says what."
_NO_ROOM = "The server has no room for this, or may not write it; its log says where."


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let errors reach the visitor as one plain sentence, and the log as a trace."""
    try:
        yield
    except gr.Error:
        raise
    except StorageError as error:  # which names a path
        logger.exception("not written")
        raise gr.Error(_NO_ROOM, title="That did not work", print_exception=False) from error
    except SVFitError as error:
        logger.warning("refused: %s", error, exc_info=True)
        first_line = html.escape(str(error).splitlines()[0], quote=False)  # toasts show HTML
        raise gr.Error(first_line, title="That did not work", print_exception=False) from error
    except Exception as error:
        logger.exception("unexpected")
        raise gr.Error(_UNEXPECTED, title="That did not work", print_exception=False) from error


def status(text: str, done: int = 0, total: int = 0) -> str:
    """The status line as HTML: a sentence, and a bar while there is something to wait for.

    Args:
        text: the sentence, plain text.
        done: how much is done.
        total: of how much; 0 for no bar.
    """
    bar = f'<progress value="{done}" max="{total}"></progress>' if total else ""
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
