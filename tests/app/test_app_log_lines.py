"""What visitors name does not look like the log's own lines."""

from __future__ import annotations

import io
import logging
import sys
import traceback

import pytest

from app.log_lines import OneRecord, errors_logged

FORGED = "rex\n2026-01-01 00:00:00,000 INFO app all is well\r\x1b[2Kgone\u2028\u202e\x00"


@pytest.fixture
def log() -> io.StringIO:
    """What the log holds, as `start_log` lets it be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneRecord("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def lines(log: io.StringIO) -> list[str]:
    return log.getvalue().splitlines()


def test_a_name_does_not_begin_a_line(log: io.StringIO) -> None:
    logging.getLogger("app").warning("refused: %s", FORGED)
    first, second = lines(log)
    assert first.endswith("refused: rex")
    assert second.startswith("    | 2026")
    assert r"\r\x1b[2Kgone\u2028\u202e\x00" in second


def test_nor_within_a_trace(log: io.StringIO) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("app").exception("failed")
    first, *others = lines(log)
    assert first.endswith("ERROR app failed")
    assert others and all(line.startswith("    | ") for line in others)


def test_nor_where_others_print(log: io.StringIO) -> None:
    with errors_logged():
        print("half a line, ", end="", file=sys.stderr)
        print(FORGED, file=sys.stderr)
        try:
            raise ValueError(FORGED)
        except ValueError:
            traceback.print_exc()
    assert len(lines(log)) > 5
    assert all(" WARNING stderr " in line for line in lines(log))
    assert "half a line, rex" in lines(log)[0]


def test_ordinary_names_are_written_as_they_are(log: io.StringIO) -> None:
    logging.getLogger("app").warning("“%s” — σ, 猫\tand é", "rex")
    assert lines(log)[0].endswith("“rex” — σ, 猫\tand é")
