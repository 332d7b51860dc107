"""Every block of code of the documentation runs as printed, page by page, from a fresh clone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from doc_pages import NAMES, PAGES, ROOT, Block, blocks, commands
from doc_svfit import svfit

NOT_RUN = {
    "installs": 4,
    "takes minutes": 5,
    "needs the hub": 4,
    "starts a server": 2,
    "starts a cluster": 1,
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
        if block.reason:
            continue
        if block.language == "bash":
            run_commands(page, block, clone / "printed")
        elif block.language == "python":
            text = "\n" * block.line + block.text  # so that traces name the page's own lines
            exec(compile(text, page, "exec"), names)


def run_commands(page: Path, block: Block, printed: Path) -> None:
    for words in commands(block.text):
        assert words[0] == "svfit", f"{page}:{block.line}: only svfit is run here, not {words[0]}"
        status = svfit(words, printed)
        assert status == 0, f"{page}:{block.line}: {words}\n{printed.read_text()}"


def test_few_blocks_are_not_run_and_say_why() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason]
    assert {reason: reasons.count(reason) for reason in sorted(set(reasons))} == {
        reason: NOT_RUN[reason] for reason in sorted(NOT_RUN)
    }


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_are_of_known_languages(page: Path) -> None:
    """Others would go unseen; formulas alone are indented blocks."""
    strange = [block for block in blocks(page) if block.language not in _LANGUAGES]
    assert all("W" in block.text and " = " in block.text for block in strange), strange
    assert not [b for b in blocks(page) if b.language == "powershell" and not b.reason]
