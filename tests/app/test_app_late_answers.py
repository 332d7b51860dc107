"""Answers of the server that come late, as on a busy machine, take back nothing a visitor did."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from app_server import (
    LONG,
    AppServer,
    choose,
    chosen,
    expect,
    open_tab,
    unfold,
    write_random_adapter,
)
from PIL import Image

from app.picture import PictureSettings


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., threading.Event]]:
    """Let the server wait at a method, `late(library, "names")`, until the event is set."""
    events = []

    def hold(owner: Any, name: str) -> threading.Event:
        event, method = threading.Event(), getattr(owner, name)

        def waiting(*args: Any) -> Any:
            assert event.wait(LONG / 1000)
            return method(*args)

        monkeypatch.setattr(owner, name, waiting)
        events.append(event)
        return event

    yield hold
    for event in events:
        event.set()


@pytest.fixture
def newcomer(app_server: AppServer, tmp_path: Path) -> Iterator[Path]:
    """The file of an adapter that is not in the library, and will not be after the test."""
    yield write_random_adapter(tmp_path / "newcomer.safetensors", 9)
    app_server.services.library.delete("newcomer")


def test_what_was_asked_of_the_album_last_is_shown(
    visit: Callable[..., Any], app_server: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    album, released = app_server.services.album, threading.Event()
    for seed, prompt in ((903, "an ocelot at sea"), (904, "a lynx at sea")):
        album.keep(Image.new("RGB", (16, 16), "teal"), PictureSettings(prompt, seed=seed, steps=3))
    find = album.find

    def slow(text: str = "", *args: Any, **kwargs: Any) -> Any:
        if not text:
            assert released.wait(LONG / 1000)
        return find(text, *args, **kwargs)

    monkeypatch.setattr(album, "find", slow)
    page = visit()
    with page.expect_request("**/run/predict*"):
        page.click("#generate-album button")
    page.locator("#generate-find input, #generate-find textarea").fill("ocelot")
    page.wait_for_timeout(1000)  # the words are on their way, if nothing holds them
    released.set()
    found = page.locator("#generate-pictures .gallery-item")
    expect(found).to_have_count(1, timeout=LONG)
    page.wait_for_timeout(1000)  # an answer to what was asked first would come by now
    assert "ocelot" in found.locator("img").get_attribute("alt")


@pytest.mark.parametrize(
    ("tab", "field"),
    [
        ("Generate", "#generate-adapters"),
        ("Compare", "#compare-adapters"),
        ("Train", "#train-adapter"),
        ("Inspect", "#inspect-adapter"),
    ],
)
def test_what_is_chosen_before_the_list_comes_stays(
    visit: Callable[..., Any],
    app_server: AppServer,
    newcomer: Path,
    late: Callable[..., threading.Event],
    tab: str,
    field: str,
) -> None:
    library = app_server.services.library
    listing = late(library, "names")
    page = visit()
    open_tab(page, tab)
    choose(page, field, "tom")
    shutil.copy(newcomer, library.folder)
    listing.set()
    page.locator(f"{field} input").click()
    page.get_by_role("option", name="newcomer").wait_for()
    assert chosen(page, field) == ["tom"]


def test_what_is_chosen_while_a_file_is_added_stays(
    page: Any, app_server: AppServer, newcomer: Path, late: Callable[..., threading.Event]
) -> None:
    adding = late(app_server.services.library, "add")
    with page.expect_file_chooser() as chooser:
        page.click("#generate-add-adapter")
    with page.expect_request("**/queue/join*"):
        chooser.value.set_files(newcomer)
    choose(page, "#generate-adapters", "tom")
    adding.set()
    page.get_by_label("range slider for Strength of newcomer").wait_for()
    assert chosen(page, "#generate-adapters") == ["tom", "newcomer"]


def test_a_seed_typed_while_a_picture_is_drawn_stays(
    page: Any, app_server: AppServer, late: Callable[..., threading.Event]
) -> None:
    drawing = late(app_server.services.generator, "run")
    unfold(page, "#generate-settings")
    seed = page.locator("#generate-seed input")
    page.click("#generate-go")
    page.locator("#generate-new-seed input").uncheck()
    seed.fill("42")
    drawing.set()
    page.locator("#generate-status", has_text="Done").wait_for()
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done. Seed 42.").wait_for()
    expect(seed).to_have_value("42")


def test_values_of_an_axis_stay_until_another_kind_is_chosen(page: Any) -> None:
    open_tab(page, "Compare")
    values = page.locator("#compare-x-values textarea")
    values.fill("0.2, 0.4")
    choose(page, "#compare-x-kind", "Strength")
    choose(page, "#compare-y-kind", "Nothing")
    page.locator("#compare-y-values").wait_for(state="hidden")
    assert values.input_value() == "0.2, 0.4"
    choose(page, "#compare-x-kind", "Steps")
    page.wait_for_function("v => v.value == '5, 10, 20'", arg=values.element_handle())


def test_each_picture_that_is_chosen_is_asked_for(app_server: AppServer) -> None:
    blocks = app_server.server.get_blocks()
    modes = [
        fn.trigger_mode
        for fn in blocks.fns.values()
        for block, event in fn.targets
        if fn.fn and event == "select" and isinstance(blocks.blocks[block], gr.Gallery)
    ]
    assert modes == ["multiple"] * 3


def test_opening_a_page_asks_the_server_for_little(visit: Callable[..., Any]) -> None:
    page = visit()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_tab(page, "Compare")
    choose(page, "#compare-adapters", "rex")
    page.click("#compare-go")
    page.locator("#compare-status", has_text="Done: 10 pictures").wait_for(timeout=LONG)
    assert sum("/run/predict" in url for url in asked) < 10
