"""Fixtures: an engine over the tiny pipeline, and a library of four adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import fill_library

from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.library import AdapterLibrary
from svfit_diffusion.serving.line import LineLimits
from svfit_diffusion.serving.shelf import Shelf

MakeEngine = Callable[..., Engine]


@pytest.fixture
def library_folder(tmp_path: Path) -> Path:
    return fill_library(tmp_path / "library")


@pytest.fixture
def library(library_folder: Path) -> AdapterLibrary:
    return AdapterLibrary(str(library_folder))


@pytest.fixture
def make_engine(tiny_pipe: Any, library: AdapterLibrary) -> Iterator[MakeEngine]:
    """Makes engines that are closed after the test."""
    made = []

    def make(limits: LineLimits | None = None, max_bytes: int | None = None) -> Engine:
        shelf = Shelf(tiny_pipe, library, max_bytes)
        made.append(Engine(tiny_pipe, shelf, limits or LineLimits(batch=4, linger=0)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
