"""Every block of code of the documentation runs as printed, page by page, from a fresh clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import NAMES, PAGES, ROOT, Block, blocks

NOT_RUN = {
    "installs": 4,
    "takes minutes": 6,
    "needs the hub": 4,
    "starts a server": 1,
    "Windows": 1,
    "writes into the documentation": 1,
}
"""Why blocks are not run, and how many at most."""

_CLONE = ("samples", "svfit_diffusion", "app", "Makefile", "train_dreambooth_svfit.py")
_LANGUAGES = {"bash", "python", "powershell", "json", "text", "yaml"}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what a clone holds, as links, so that nothing is written to them."""
    for name in _CLONE:
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.symlink)
        else:
            target.symlink_to(source)
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_runs(page: Path, clone: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if not block.reason:
            if block.language == "bash":
                run_bash(page, block)
            elif block.language == "python":
                text = "\n" * block.line + block.text  # so that traces name the page's own lines
                exec(compile(text, page, "exec"), names)


def run_bash(page: Path, block: Block) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{page}:{block.line}\n{done.stdout}\n{done.stderr}"


def test_few_blocks_are_not_run_and_say_why() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason]
    assert {reason: reasons.count(reason) for reason in sorted(set(reasons))} == {
        reason: NOT_RUN[reason] for reason in sorted(NOT_RUN)
    }


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_are_of_known_languages(page: Path) -> None:
    """Indented blocks and others would go unseen; formulas, which alone are indented, have no code."""
    strange = [block for block in blocks(page) if block.language not in _LANGUAGES]
    assert all("W" in block.text and " = " in block.text for block in strange), strange
    assert not [b for b in blocks(page) if b.language == "powershell" and not b.reason]
