"""The notebook runs from its first cell to its last, and is committed without outputs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest
from doc_pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_subject.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(ROOT / "samples", tmp_path / "samples", copy_function=os.symlink)
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert (tmp_path / "outputs" / "notebook_model" / "model_index.json").is_file()


def test_no_outputs_are_committed() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
