"""What axe-core finds on the pages: nothing that is ours. Keys move between the tabs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_server import LONG, AppServer, choose, open_tab, unfold
from PIL import Image

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]

GRADIOS = {
    "aria-prohibited-attr": 'aria-label="Empty value"',  # what galleries show before a picture
    "image-redundant-alt": 'loading="lazy"',  # a gallery's caption is its alternative text
}
"""Elements that Gradio draws as they are, by the rule they violate: what their HTML contains."""


@pytest.fixture(scope="module")
def axe() -> Any:
    return pytest.importorskip("axe_playwright_python.sync_playwright").Axe()


def violations(axe: Any, page: Any) -> list[str]:
    """Violations on the page as it is, one line per element, without those of Gradio."""
    page.wait_for_timeout(1000)  # until what an open tab asks for is under way
    # What is being computed stands there faintly until it is.
    page.wait_for_function("!document.querySelector('.pending')")
    page.wait_for_timeout(500)  # colours fade in
    found = axe.run(page, options={"runOnly": RULES}).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:160]}"
        for rule in found
        for node in rule["nodes"]
        if rule["id"] not in GRADIOS or GRADIOS[rule["id"]] not in node["html"]
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("tab", ["Generate", "Compare", "Train", "Inspect"])
def test_axe_finds_nothing_on_a_fresh_page(
    visit: Callable[..., Any], axe: Any, tab: str, width: int, scheme: str
) -> None:
    page = visit(width=width, color_scheme=scheme)
    open_tab(page, tab)
    assert violations(axe, page) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_axe_finds_nothing_on_a_full_train_page(
    visit: Callable[..., Any],
    axe: Any,
    app_server: AppServer,
    tmp_path: Path,
    width: int,
    scheme: str,
) -> None:
    """In error, and with photos, a finished training and everything unfolded."""
    page = visit(width=width, color_scheme=scheme)
    open_tab(page, "Train")
    page.click("#train-go")
    page.locator("#train-drop .field-problem").wait_for()
    assert violations(axe, page) == []
    files = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    for file in files:
        Image.new("RGB", (40, 40), file.stem).save(file)
    page.set_input_files("#train-drop input[type=file]", files)
    page.locator("#train-tiles .gallery-item").nth(2).wait_for()
    page.fill("#train-name textarea", f"axe {scheme}")
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.get_by_label("Quick").check()
    unfold(page, "#train-advanced")
    page.locator("#train-steps input").fill("2")
    page.click("#train-go")
    page.locator("#train-status", has_text="is ready to use").wait_for(timeout=LONG)
    page.locator("#train-rows img").first.wait_for()
    assert violations(axe, page) == []
    app_server.services.library.delete(f"axe {scheme}")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_on_full_pages_and_in_error(
    visit: Callable[..., Any], axe: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    """Generate, Compare and Inspect, with everything unfolded that has something to say."""
    page = visit(width=width, color_scheme=scheme)
    unfold(page, "#generate-settings")
    choose(page, "#generate-adapters", "rex")
    page.locator("#generate-steps input[type=number]").fill("2")
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for(timeout=LONG)
    page.locator("#generate-history img").first.wait_for()
    assert violations(axe, page) == []
    page.fill("#generate-prompt textarea", "x" * 1001)
    page.click("#generate-go")
    page.locator("#generate-prompt .field-problem").wait_for()
    assert violations(axe, page) == []

    open_tab(page, "Compare")
    unfold(page, "#compare-settings")
    choose(page, "#compare-adapters", "rex")
    page.locator("#compare-steps input[type=number]").fill("1")
    page.fill("#compare-x-values textarea", "0, 1")
    page.click("#compare-go")
    page.locator("#compare-status", has_text="Done").wait_for(timeout=LONG)
    page.locator("#compare-grid img").wait_for()
    assert violations(axe, page) == []
    page.fill("#compare-x-values textarea", "strong")
    page.click("#compare-go")
    page.locator("#compare-x-values .field-problem").wait_for()
    assert violations(axe, page) == []

    open_tab(page, "Inspect")
    page.locator("#inspect-weight svg").wait_for()
    page.locator("#inspect-pictures img").nth(2).wait_for()
    assert violations(axe, page) == []
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    with page.expect_file_chooser() as chooser:
        page.click("#inspect-upload")
    chooser.value.set_files(damaged)
    page.locator("#inspect-picture-problem .problem").wait_for()
    assert violations(axe, page) == []


def test_arrow_keys_move_between_the_tabs(page: Any) -> None:
    page.get_by_role("tab", name="Generate").focus()
    for key, name in (("ArrowRight", "Compare"), ("ArrowRight", "Train"), ("ArrowLeft", "Compare")):
        page.keyboard.press(key)
        page.get_by_role("tab", name=name, selected=True).wait_for()
        assert page.evaluate("document.activeElement.textContent.trim()") == name
    page.keyboard.press("End")
    page.get_by_role("tab", name="Inspect", selected=True).wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("tab", name="Generate", selected=True).wait_for()
