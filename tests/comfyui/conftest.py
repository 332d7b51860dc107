"""Fixtures: a ComfyUI around each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_comfyui import FakeComfyUI


@pytest.fixture(autouse=True)
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeComfyUI:
    """The modules that the node imports."""
    models = tmp_path / "models"
    models.mkdir()
    return FakeComfyUI(models, monkeypatch)
