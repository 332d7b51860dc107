"""`svfit` in processes forked from one which has imported everything: a page in seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["doc_imports"])


def svfit(words: Sequence[str], output: Path) -> int:
    """The exit status of `svfit` with these words, run here; what it prints goes to `output`."""
    process = _FORKS.Process(target=_run, args=(list(words), output, Path.cwd(), dict(os.environ)))
    process.start()
    process.join(240)
    process.kill()
    process.join()
    return process.exitcode or 0


def _run(words: list[str], output: Path, folder: Path, environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    with output.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = words
    from svfit_diffusion.cli.main import main

    main()
