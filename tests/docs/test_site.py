"""The site builds without a warning, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 12
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="https?://', text)


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    def page(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    assert "--mask_background_weight" in page("settings")
    assert "svfit basis prune" in page("commands")
    python = page("python")
    for name in ("load_svfit_weights", "Trainer", "export_lora", "BaseMismatchError"):
        assert f'{name}"' in python


def test_files_outside_of_the_docs_come_along(site: Path) -> None:
    assert (site / "repository" / "benchmarks" / "results" / "quality.json").is_file()
    assert (site / "repository" / "svfit_diffusion" / "comfyui" / "README.html").is_file()
