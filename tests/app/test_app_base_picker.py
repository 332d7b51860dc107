"""Going over to another base model while the app runs."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from app_server import SECONDS, arrive, expect, free_port

from app.__main__ import _serve
from app.base_model import BaseModel
from app.bases import Succession, bases_at_hand, described
from app.errors import SettingError
from app.services import build_services
from app.settings import AppSettings

ROOT = Path(__file__).resolve().parents[2]
LONG = 1000 * 120
"""Milliseconds in which two base models are loaded one after the other."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, saved_pipe: Path) -> Iterator[str]:
    """The address of an app of a process of its own, on a tiny base model."""
    folder = tmp_path_factory.mktemp("picker")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "app", "--base", str(saved_pipe), "--device", "cpu"),
            *("--port", str(free_port()), "--adapters", str(folder / "adapters")),
            *("--outputs", str(folder / "outputs")),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield next(line for line in lines if line.startswith("Open ")).split()[1]
    process.terminate()
    assert process.wait(SECONDS) == 0


def test_another_base_is_loaded_from_the_page(visit: Any, running: str, tmp_path: Path) -> None:
    other = tiny.save_tiny_pipeline(tmp_path / "another_one")
    page = visit(url=running)
    page.click("#base-picker button")
    source = page.locator("#base-source input")
    source.fill("no/such-base-anywhere")
    source.press("Enter")
    page.click("#base-load")
    page.locator("#base-problem .problem").wait_for(timeout=LONG)
    assert source.input_value() == "no/such-base-anywhere", "what was typed stays"
    source.fill(str(other))
    source.press("Enter")
    with page.expect_navigation(timeout=LONG):
        page.click("#base-load")
    arrive(page)
    expect(page.locator("#base", has_text=other.name)).to_be_visible(timeout=LONG)


def test_the_weights_of_a_base_that_was_replaced_are_let_go(
    saved_pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    folders = {name: tmp_path / name for name in ("adapters", "outputs")}
    services = build_services(AppSettings(base=str(saved_pipe), device="cpu", **folders))
    services.succession.prepare(str(saved_pipe))
    before = weakref.ref(services.base)
    following, _ = _serve(services, free_port())
    del services
    gc.unfreeze()  # as the next app does when it begins
    gc.collect()
    assert before() is None
    assert following is not None
    following.close()


def test_a_base_that_cannot_be_loaded_changes_nothing() -> None:
    def build(source: str) -> str:
        if source == "bad":
            raise SettingError("cannot be loaded")
        return f"services on {source}"

    succession = Succession(build)
    with pytest.raises(SettingError, match="cannot be loaded"):
        succession.prepare("bad")
    succession.prepare("good")
    assert succession.wait() == "services on good"


def test_bases_say_what_they_are_good_for(saved_pipe: Path) -> None:
    told = described(BaseModel(str(saved_pipe), "cpu"))
    assert told.startswith(f"{saved_pipe.name}, Stable Diffusion, for pictures of 16 × 16 pixels")
    assert str(saved_pipe.parent) not in told
    assert str(ROOT / "samples" / "toybox") in bases_at_hand()
