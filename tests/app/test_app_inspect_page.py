"""Inspect in a real browser."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_server import choose, open_tab
from PIL import Image
from safetensors import safe_open


@pytest.fixture
def inspect_page(visit: Callable[..., Any]) -> Callable[..., Any]:
    """Open the Inspect page in a fresh session and wait until it shows the first adapter."""

    def open_page(**options: Any) -> Any:
        page = visit(**options)
        open_tab(page, "Inspect")
        for figure in ("moved", "values", "energy", "weight"):
            page.locator(f"#inspect-{figure} svg").wait_for()
        page.locator("#inspect-pictures img").nth(2).wait_for()
        return page

    return open_page


def upload(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#inspect-upload")
    chooser.value.set_files(file)


def test_an_adapter_is_described_and_another_one_differs(
    inspect_page: Callable[..., Any],
) -> None:
    page = inspect_page()
    table = page.locator("#inspect-facts").inner_text()
    assert "KiB" in table and "Matches this one, weight for weight" in table
    first = page.locator("#inspect-moved svg").get_attribute("aria-label")
    choose(page, "#inspect-adapter", "tom")
    page.wait_for_function(
        "before => document.querySelector('#inspect-moved svg').ariaLabel != before", arg=first
    )
    with page.expect_download() as download:
        page.click("#inspect-download")
    assert download.value.suggested_filename == "tom.safetensors"


def test_ranks_are_moved_by_keys(inspect_page: Callable[..., Any]) -> None:
    page = inspect_page()
    for name in ("weight", "picture"):
        page.locator(f"#inspect-{name}-rank input[type=range]").press("End")
        page.locator(f"#inspect-{name}-line", has_text="carry 100.0%").wait_for()


def test_another_layer_is_shown(inspect_page: Callable[..., Any]) -> None:
    page = inspect_page()
    page.locator("#inspect-layer input").click()
    name = page.get_by_role("option").nth(1).get_attribute("aria-label")
    page.locator("#inspect-layer input").blur()
    choose(page, "#inspect-layer", name)
    page.locator(f'#inspect-values svg[aria-label*="{name}"]').wait_for()


def test_own_pictures_are_taken_apart_and_fakes_refused(
    inspect_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = inspect_page()
    fake = tmp_path / "fake.png"
    fake.write_text("no picture")
    upload(page, fake)
    page.get_by_text("fake.png: not a JPEG").wait_for()
    own = tmp_path / "own.png"
    Image.effect_noise((50, 40), 80).save(own)
    upload(page, own)
    page.locator("#inspect-picture-line", has_text="of 40 singular values").wait_for()


def test_a_merged_pipeline_can_be_fetched(inspect_page: Callable[..., Any], tmp_path: Path) -> None:
    page = inspect_page()
    page.click("#inspect-folder")
    page.locator("#inspect-built", has_text="MiB").wait_for()
    with page.expect_download() as download:
        page.click("#inspect-built")
    download.value.save_as(tmp_path / "merged.zip")
    with zipfile.ZipFile(tmp_path / "merged.zip") as archive:
        assert {"model_index.json", "unet/config.json"} <= set(archive.namelist())


@pytest.mark.parametrize(("form", "ending"), [("lora", "_lora"), ("dense", "_dense")])
def test_forms_for_other_programs_can_be_fetched(
    inspect_page: Callable[..., Any], tmp_path: Path, form: str, ending: str
) -> None:
    page = inspect_page()
    page.click(f"#inspect-{form}")
    page.locator("#inspect-built", has_text=f"{ending}.safetensors").wait_for()
    with page.expect_download() as download:
        page.click("#inspect-built")
    download.value.save_as(tmp_path / "fetched.safetensors")
    with safe_open(tmp_path / "fetched.safetensors", "pt") as file:
        assert len(list(file.keys())) > 10


def test_the_page_begins_with_a_plain_sentence(inspect_page: Callable[..., Any]) -> None:
    sentence = inspect_page().locator("#inspect-sentence").inner_text()
    assert sentence.startswith("With “") and "of its layers stretch what they are given" in sentence


def test_the_page_fits_a_phone(inspect_page: Callable[..., Any]) -> None:
    page = inspect_page(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
