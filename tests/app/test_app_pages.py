"""Generate and Compare in a real browser, as visitors use them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_server import (
    ADAPTERS,
    AppServer,
    arrive,
    choose,
    expect,
    open_tab,
    unfold,
    write_random_adapter,
)
from PIL import Image

from app.picture import PictureSettings
from app.png_metadata import read_settings, save_picture
from app.settings import Limits
from svfit_diffusion.files.adapter import read_adapter, write_adapter

SEED = re.compile(r"seed (\d+)")


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., Path]:
    """Fetch what an <img> shows, as the browser would save it."""

    def save(image: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        path.write_bytes(image.page.request.get(image.get_attribute("src")).body())
        return path

    return save


def generate(page: Any, count: int = 1) -> Any:
    """Click Generate, wait, and return the pictures shown, as a locator of <img>s."""
    history = page.locator("#generate-history .gallery-item")
    before = history.count()
    page.click("#generate-go")
    history.nth(before + count - 1).wait_for()
    page.locator("#generate-status", has_text="Done").wait_for()
    pictures = page.locator("#generate-result .gallery-item")
    expect(pictures).to_have_count(count)
    return pictures.locator("img")


def fill(page: Any, element: str, value: float) -> None:
    """Set a number in the folded settings."""
    unfold(page, f"#{element.split('-')[0]}-settings")
    field = page.locator(f"#{element} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def add_adapter(page: Any, name: str) -> Any:
    """Choose an adapter on Generate and return its slider."""
    choose(page, "#generate-adapters", name)
    slider = page.get_by_label(f"range slider for Strength of {name}")
    slider.wait_for()
    return slider


def test_the_page_loads_without_the_network_and_without_errors(
    visit: Callable[..., Any], app_server: AppServer
) -> None:
    page = visit()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.reload()
    arrive(page)
    for tab in ("Compare", "Train", "Inspect", "Generate"):
        open_tab(page, tab)
        page.get_by_role("tabpanel").locator("visible=true").first.wait_for()
    outside = [url for url in asked if not url.startswith((app_server.url, "data:", "blob:"))]
    assert asked and not outside and not complaints


def test_generating_shows_a_picture_that_knows_its_settings(
    page: Any, fetch: Callable[..., Path]
) -> None:
    page.fill("#generate-prompt textarea", "a photo of a teapot")
    fill(page, "generate-steps", 7)
    fill(page, "generate-count", 2)
    pictures = generate(page, count=2)
    first, second = (read_settings(fetch(pictures.nth(i)), Limits()) for i in (0, 1))
    assert (first.prompt, first.steps, first.adapters) == ("a photo of a teapot", 7, {})
    assert second.seed == first.seed + 1
    # Both are in the history, the newest first; another round goes before them.
    history = page.locator("#generate-history img")
    history.nth(1).wait_for()
    fill(page, "generate-count", 1)
    third = read_settings(fetch(generate(page)), Limits())
    history.nth(2).wait_for()
    seeds = [read_settings(fetch(history.nth(i)), Limits()).seed for i in range(3)]
    assert seeds == [third.seed, second.seed, first.seed]


def test_a_strength_dragged_or_typed_by_keys_is_the_one_drawn_with(
    page: Any, fetch: Callable[..., Path]
) -> None:
    slider = add_adapter(page, "rex")
    fill(page, "generate-steps", 3)
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.75, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=5)
    page.mouse.up()
    dragged = read_settings(fetch(generate(page)), Limits())
    assert dragged.adapters["rex"] == pytest.approx(-1, abs=0.15)
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    pressed = read_settings(fetch(generate(page)), Limits())
    assert pressed.adapters["rex"] == pytest.approx(dragged.adapters["rex"] + 0.1)
    # A second adapter leaves the first one's strength alone.
    add_adapter(page, "tom")
    assert float(slider.input_value()) == pytest.approx(pressed.adapters["rex"])
    mixed = read_settings(fetch(generate(page)), Limits())
    assert mixed.adapters == {"rex": pressed.adapters["rex"], "tom": 1}


def test_a_visit_begins_with_the_seed_in_the_field_and_goes_on_with_new_ones(
    page: Any, fetch: Callable[..., Path]
) -> None:
    fill(page, "generate-steps", 2)
    seeds = [read_settings(fetch(generate(page)), Limits()).seed for _ in range(3)]
    assert seeds[0] == 1
    assert len(set(seeds)) == 3


def test_the_last_seed_is_used_again(page: Any, fetch: Callable[..., Path]) -> None:
    fill(page, "generate-steps", 2)
    first = fetch(generate(page))
    page.click("#generate-reuse-seed")
    page.locator("#generate-new-seed input:not(:checked)").wait_for(state="attached")
    assert fetch(generate(page)).read_bytes() == first.read_bytes()


def test_a_dropped_picture_brings_its_settings_back(
    page: Any, fetch: Callable[..., Path], tmp_path: Path
) -> None:
    settings = PictureSettings(
        "a cartoon of a cat", "blurry", {"tom": 0.35, "gone": 1.0}, 4, 3.5, 32, 24, 123, "DDIM"
    )
    add_adapter(page, "tom")
    page.set_input_files(
        "#generate-restore input", save_picture(tmp_path, Image.new("RGB", (8, 8)), settings)
    )
    page.locator("#generate-status", has_text="seed 123. Not here: gone.").wait_for()
    slider = page.get_by_label("range slider for Strength of tom")
    page.wait_for_function("slider => slider.value === '0.35'", arg=slider.element_handle())
    restored = read_settings(fetch(generate(page)), Limits())
    assert restored == PictureSettings(
        "a cartoon of a cat", "blurry", {"tom": 0.35}, 4, 3.5, 32, 24, 123, "DDIM"
    )


def test_a_foreign_picture_gets_one_sentence(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    page.set_input_files("#generate-restore input", tmp_path / "foreign.png")
    page.fill("#generate-prompt textarea", "typed before")
    problem = page.locator("#generate-dropped-problem").get_by_role("alert")
    problem.wait_for()
    assert "carries no settings" in problem.inner_text()
    assert page.locator("#generate-prompt textarea").input_value() == "typed before"
    assert page.get_by_test_id("toast-body").count() == 0


def test_a_chosen_picture_of_the_session_brings_its_settings_back(
    page: Any, fetch: Callable[..., Path]
) -> None:
    fill(page, "generate-steps", 2)
    first = fetch(generate(page))
    page.fill("#generate-prompt textarea", "something else")
    generate(page)
    history = page.locator("#generate-history .gallery-item button")
    history.nth(1).click()
    page.locator(
        "#generate-status", has_text="Chosen: a photo of a teapot on a wooden floor · seed"
    ).wait_for()
    page.click("#generate-reuse")
    page.locator("#generate-status", has_text="restored").wait_for()
    assert fetch(generate(page)).read_bytes() == first.read_bytes()


def test_stop_stops_and_the_next_picture_comes(page: Any, fetch: Callable[..., Path]) -> None:
    fill(page, "generate-steps", 100)
    fill(page, "generate-count", 8)
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Step").wait_for()
    page.click("#generate-stop")
    page.locator("#generate-status", has_text="Stopped").wait_for()
    fill(page, "generate-steps", 2)
    fill(page, "generate-count", 1)
    assert read_settings(fetch(generate(page)), Limits()).steps == 2
    expect(page.locator("#generate-history .gallery-item")).to_have_count(1)


def test_two_visitors_at_once_each_get_their_own_subject(
    visit: Callable[..., Any], fetch: Callable[..., Path]
) -> None:
    pages = [visit(), visit()]
    for page, name in zip(pages, ADAPTERS, strict=True):
        add_adapter(page, name)
        fill(page, "generate-steps", 10)
        fill(page, "generate-seed", 11)
        page.locator("#generate-new-seed input").uncheck()

    def pixels(picture: Any) -> Any:
        return np.asarray(Image.open(fetch(picture))).astype(int)

    alone = [pixels(generate(page)) for page in pages]
    assert np.abs(alone[0] - alone[1]).max() > 20
    for page in pages:
        page.click("#generate-go")
    for page in pages:
        page.locator("#generate-history .gallery-item").nth(1).wait_for()
    for page, before in zip(pages, alone, strict=True):
        # Where they share a batch, float32 sums may round otherwise.
        assert np.abs(pixels(page.locator("#generate-history img").first) - before).max() <= 2


def test_an_added_adapter_file_can_be_used_at_once(
    page: Any, app_server: AppServer, tmp_path: Path, fetch: Callable[..., Path]
) -> None:
    upload = write_random_adapter(tmp_path / "new one.safetensors", 7)
    with page.expect_file_chooser() as chooser:
        page.click("#generate-add-adapter")
    chooser.value.set_files(upload)
    page.locator("#generate-status", has_text="Added “new one”").wait_for()
    page.get_by_label("range slider for Strength of new one").wait_for()
    fill(page, "generate-steps", 2)
    assert read_settings(fetch(generate(page)), Limits()).adapters == {"new one": 1}
    app_server.services.library.delete("new one")
    # A page that still offers it says so in a sentence.
    page.click("#generate-go")
    page.locator("#generate-problem", has_text="no adapter named “new one”").wait_for()


def test_comparing_gives_a_grid_to_download(page: Any, fetch: Callable[..., Path]) -> None:
    open_tab(page, "Compare")
    fill(page, "compare-steps", 2)
    choose(page, "#compare-x-kind", "Adapter")
    values = page.locator("#compare-x-values textarea")
    page.wait_for_function(
        "field => field.value === 'base model, rex, tom'", arg=values.element_handle()
    )
    page.locator("#compare-y-values textarea").fill("1, 2")
    page.click("#compare-go")
    page.locator("#compare-status", has_text="Done: 6 pictures").wait_for()
    shown = fetch(page.locator("#compare-grid img"))
    width, height = Image.open(shown).size
    assert width > 3 * 160 and height > 2 * 160
    with page.expect_download() as download:
        page.locator("#compare-download").click()
    saved = shutil.copy(download.value.path(), shown.with_name("saved.png"))
    assert Path(saved).read_bytes() == shown.read_bytes()


def test_a_wrong_axis_gets_one_sentence(page: Any) -> None:
    open_tab(page, "Compare")
    page.locator("#compare-y-values textarea").fill("one, two")
    page.click("#compare-go")
    text = "Choose the adapter whose strength is to vary."
    page.locator("#compare-problem", has_text=text).wait_for()
    page.locator("#compare-adapters .field-problem", has_text=text).wait_for()
    page.locator("#compare-status", has_text="Not done").wait_for()
    choose(page, "#compare-adapters", "rex")
    page.click("#compare-go")
    text = "“one” is no whole number"
    page.locator("#compare-problem", has_text=text).wait_for()
    page.locator("#compare-y-values .field-problem", has_text=text).wait_for()
    expect(page.locator("[aria-invalid=true]")).to_have_count(1)
    assert page.get_by_test_id("toast-body").count() == 0


def test_every_kind_of_refusal_names_its_cause_in_place(page: Any, tmp_path: Path) -> None:
    """Renames, which wait in no queue, taken names, foreign adapters, pictures that are none."""
    open_tab(page, "Train")
    rename = page.locator("#train-rename").get_by_role("button", name="Rename")
    rename.click()
    page.locator("#train-rename-problem", has_text="Choose an adapter first.").wait_for()
    choose(page, "#train-adapter", "rex")
    for name, cause in (("tom", "There is an adapter named “tom” already."), ("../", "A name con")):
        page.get_by_label("New name").fill(name)
        rename.click()
        page.locator("#train-rename .field-problem", has_text=cause).wait_for()
        assert page.get_by_label("New name").input_value() == name
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    open_tab(page, "Generate")
    with page.expect_file_chooser() as chooser:
        page.click("#generate-add-adapter")
    chooser.value.set_files(broken)
    page.locator("#generate-added-problem", has_text="“broken.safetensors” cannot be").wait_for()
    page.click("#generate-reuse")
    page.locator("#generate-history-problem", has_text="Choose a picture first.").wait_for()
    open_tab(page, "Inspect")
    (tmp_path / "fake.png").write_bytes(b"nothing")
    with page.expect_file_chooser() as chooser:
        page.click("#inspect-upload")
    chooser.value.set_files(tmp_path / "fake.png")
    page.locator("#inspect-picture-problem", has_text="fake.png: ").wait_for()
    assert page.get_by_test_id("toast-body").count() == 0


def test_gradios_own_errors_stand_in_place_too(page: Any, tmp_path: Path) -> None:
    open_tab(page, "Train")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(Limits().max_file_bytes + 1))
    page.set_input_files("#train-drop input[type=file]", large)
    problem = page.locator("#train-drop + .problem")
    problem.wait_for()
    assert "File(s) exceed the maximum allowed size" in problem.inner_text()
    page.get_by_test_id("toast-body").wait_for(state="detached")
    page.click("#train-go")  # which has another
    problem.wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(width=390, color_scheme=scheme)
    generate(page)
    for tab in ("Generate", "Compare", "Train", "Inspect"):
        open_tab(page, tab)
        page.locator(f"#{tab.lower()}-go").or_(page.get_by_role("tabpanel")).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
    # The colours follow what the visitor's system asks for.
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    )
    assert (brightness < 128) == (scheme == "dark")


def test_the_main_action_is_in_sight_and_within_reach_of_keys(visit: Callable[..., Any]) -> None:
    page = visit()
    page.set_viewport_size({"width": 1280, "height": 640})
    box = page.locator("#generate-go").bounding_box()
    assert box["y"] + box["height"] < 640
    page.locator("#generate-prompt textarea").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "generate-go"
    page.keyboard.press("Enter")
    page.locator("#generate-status", has_text="Done").wait_for()


@pytest.fixture
def taught(app_server: AppServer, tmp_path: Path) -> Iterator[str]:
    """An adapter in the library whose file says what it was trained with."""
    adapter = read_adapter(write_random_adapter(tmp_path / "ginger.safetensors", 5))
    metadata = replace(adapter.metadata, instance_prompt="a photo of ginger cat")
    path = app_server.services.library.folder / "ginger.safetensors"
    write_adapter(path, replace(adapter, metadata=metadata))
    yield "ginger"
    path.unlink()


def test_an_adapter_brings_its_prompt_unless_one_was_written(
    visit: Callable[..., Any], taught: str
) -> None:
    page = visit()
    prompt = page.locator("#generate-prompt textarea")
    choose(page, "#generate-adapters", taught)
    page.wait_for_function("p => p.value == 'a photo of ginger cat'", arg=prompt.element_handle())
    prompt.fill("ginger cat on the moon")
    page.locator("#generate-adapters .token-remove").first.click()
    choose(page, "#generate-adapters", taught)
    page.get_by_label(f"range slider for Strength of {taught}").wait_for()
    expect(prompt).to_have_value("ginger cat on the moon")
