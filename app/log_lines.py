"""A log whose lines nobody forges: what visitors name may hold the ends of lines.

Names of adapters, prompts and files come into messages and traces. Each record is one line that
begins with its time, and further lines that begin unlike any; what others print is logged as well.
"""

from __future__ import annotations

import io
import logging
import sys
from contextlib import AbstractContextManager, redirect_stderr

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_FURTHER = "\n    | "


class OneRecord(logging.Formatter):
    """Formats records so that no text within one looks like another."""

    def format(self, record: logging.LogRecord) -> str:
        return _FURTHER.join(visible(line) for line in super().format(record).split("\n"))


class _Logged(io.TextIOBase):
    """A stream whose lines are logged, with the name of the stream."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            self._logger.warning("%s", line)
        return len(text)

    def writable(self) -> bool:
        return True


def visible(line: str) -> str:
    """A line with what moves the cursor, colours it or ends it escaped."""
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)


def start_log() -> None:
    """Log to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneRecord(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it is up
    logging.raiseExceptions = False  # a log that cannot be written would be logged


def errors_logged() -> AbstractContextManager[object]:
    """Log, within a block, what Gradio and others print to the standard error."""
    return redirect_stderr(_Logged("stderr"))
