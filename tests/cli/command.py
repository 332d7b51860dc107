"""The command `svfit`, called as its users call it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass

import pytest

from svfit_diffusion.cli.main import main


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, and what it printed."""

    code: int
    out: str
    err: str


def svfit(*words: object) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["svfit", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # what Python prints when a process ends with a message
        return Said(1, out.getvalue(), err.getvalue() + code)
    assert code is None or isinstance(code, int)
    return Said(code or 0, out.getvalue(), err.getvalue())


def done(*words: object) -> str:
    """What a command prints that must succeed."""
    said = svfit(*words)
    assert said.code == 0, said.err
    return said.out


def refused(*words: object) -> str:
    """The one sentence of a command that must fail; no trace."""
    said = svfit(*words)
    assert said.code != 0, said.out
    assert "Traceback" not in said.err
    return said.err


def python(code: str) -> str:
    """What a new interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout
