"""Train in a real browser: photos, a training to its end, stopping, leaving and coming back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import LONG, AppServer, arrive, choose, chosen, open_tab, unfold
from PIL import Image

from svfit_diffusion.files.adapter import read_adapter
from svfit_diffusion.training.trainer import Trainer


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three wide photos, red on the left and blue on the right."""
    files = [tmp_path / f"photo {i}.jpg" for i in range(3)]
    for file in files:
        image = Image.new("RGB", (160, 80), "red")
        image.paste("blue", (80, 0, 160, 80))
        image.save(file, quality=95)
    return files


@pytest.fixture
def train_page(visit: Callable[..., Any], app_server: AppServer) -> Iterator[Callable[..., Any]]:
    """Open the Train page in a fresh session; nothing is in training before and after a test."""

    def open_page(**options: Any) -> Any:
        page = visit(**options)
        open_tab(page, "Train")
        return page

    yield open_page
    app_server.services.jobs.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Trainings pause after their second step until this event is set."""
    released = threading.Event()
    steps = Trainer.steps

    def pausing(trainer: Trainer) -> Iterator[Any]:
        for record in steps(trainer):
            yield record
            if record.step == 2:
                assert released.wait(LONG / 1000)

    monkeypatch.setattr(Trainer, "steps", pausing)
    yield released
    released.set()


def drop(page: Any, files: list[Path]) -> None:
    page.set_input_files("#train-drop input[type=file]", files)


def tiles(page: Any) -> Any:
    return page.locator("#train-tiles .gallery-item")


def fill(page: Any, name: str, steps: int = 20) -> None:
    """Fill in the form for a short training without class images."""
    page.fill("#train-name textarea", name)
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.get_by_label("Quick").check()
    unfold(page, "#train-advanced")
    page.locator("#train-steps input").fill(str(steps))
    page.locator("#train-steps input").press("Tab")


def start(page: Any, photos: list[Path], name: str, steps: int = 20) -> None:
    drop(page, photos)
    tiles(page).nth(len(photos) - 1).wait_for()
    fill(page, name, steps)
    page.click("#train-go")


def status(page: Any, text: str) -> None:
    """Wait for a text in the status line."""
    page.locator("#train-status", has_text=text).wait_for(timeout=LONG)


@pytest.mark.parametrize(
    ("preset", "steps", "prior"), [("Balanced", 400, True), ("Quick", 120, False)]
)
def test_photos_name_and_prompts_are_enough_to_train(
    train_page: Callable[..., Any],
    photos: list[Path],
    app_server: AppServer,
    held: threading.Event,
    preset: str,
    steps: int,
    prior: bool,
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    page.fill("#train-name textarea", preset)
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.fill("#train-class-prompt textarea", "a photo of a dog")
    page.get_by_label(preset).check()
    page.click("#train-go")
    status(page, f"“{preset}”: step 2 of {steps}")
    page.click("#train-stop")  # which spares the tests the other steps
    held.set()
    status(page, f"“{preset}” is ready to use.")
    config = app_server.services.jobs.status().config
    assert config.with_prior_preservation is prior
    assert config.validation_prompt == ["a photo of sks dog"]


def test_twenty_steps_to_an_adapter_to_use_fetch_rename_and_delete(
    train_page: Callable[..., Any], photos: list[Path], tmp_path: Path
) -> None:
    page = train_page()
    start(page, photos, "my dog")
    status(page, "Done, 20 steps: “my dog” is ready to use.")
    assert "20 of 20 steps" in page.locator("#train-curves svg").get_attribute("aria-label")
    captions = page.locator("#train-samples .caption-label")
    captions.first.filter(has_text="20").wait_for()
    captions.last.filter(has_text="base").wait_for()
    page.locator("#train-learned-photos .gallery-item").nth(2).wait_for()

    with page.expect_download() as download:
        page.click("#train-download")
    fetched = tmp_path / download.value.suggested_filename
    download.value.save_as(fetched)
    assert fetched.name == "my dog.safetensors"
    assert read_adapter(fetched).metadata.instance_prompt == "a photo of sks dog"

    page.get_by_label("New name").fill("Bello")
    page.locator("#train-rename").get_by_role("button", name="Rename").click()
    page.wait_for_function("document.querySelector('#train-adapter input').value == 'Bello'")
    open_tab(page, "Generate")
    page.locator("#generate-adapters input").click()
    options = page.get_by_role("option")
    options.filter(has_text="Bello").wait_for()
    assert "my dog" not in options.all_inner_texts()

    open_tab(page, "Train")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#train-delete")
    assert page.locator("#train-adapter input").input_value() == "Bello"
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#train-delete")
    page.wait_for_function("document.querySelector('#train-adapter input').value == ''")


def test_stopping_midway_keeps_what_was_learned_and_what_was_chosen(
    train_page: Callable[..., Any], photos: list[Path], held: threading.Event
) -> None:
    page = train_page()
    assert page.locator("#train-stop").is_disabled()
    start(page, photos, "stopped")
    status(page, "step 2 of 20")
    choose(page, "#train-adapter", "rex")
    page.click("#train-stop")
    held.set()
    status(page, "Stopped after step 3: “stopped” is ready to use.")
    page.locator("#train-stop:disabled").wait_for()
    # It can be chosen, and is, where nothing else was.
    page.locator("#train-adapter input").click()
    page.get_by_role("option", name="stopped").wait_for()
    assert chosen(page, "#train-adapter") == ["rex"]


def test_a_reload_finds_the_running_training_and_a_second_one_is_refused(
    train_page: Callable[..., Any], photos: list[Path], held: threading.Event
) -> None:
    page = train_page()
    start(page, photos, "found again")
    status(page, "step 2 of 20")
    page.reload()
    arrive(page)
    open_tab(page, "Train")
    status(page, "“found again”: step 2 of 20")
    page.locator("#train-curves svg").wait_for()
    page.locator("#train-learned-photos .gallery-item").nth(2).wait_for()
    page.locator("#train-stop:enabled").wait_for()

    other = train_page()
    start(other, photos, "another")
    other.get_by_text("“found again” is being trained, and one training runs at a time").wait_for()

    held.set()
    for each in (page, other):
        status(each, "“found again” is ready to use.")


def test_fake_images_are_refused_by_name_and_the_others_kept(
    train_page: Callable[..., Any], photos: list[Path], tmp_path: Path
) -> None:
    page = train_page()
    fake = tmp_path / "no <b>photo.jpg"
    fake.write_text("<script>alert(1)</script>")
    drop(page, [photos[0], fake, photos[1]])
    tiles(page).nth(1).wait_for()
    assert tiles(page).count() == 2
    refused = page.get_by_role("alert").inner_text()
    assert "photo" in refused and "not a JPEG" in refused

    fill(page, "too few")
    page.click("#train-go")
    page.get_by_text("A training takes 3 to 20 photos, you have given 2.").wait_for()

    drop(page, [photos[2]])
    tiles(page).nth(2).wait_for()
    page.get_by_role("alert").filter(has_text="Not taken").wait_for(state="hidden")
    page.click("#train-remove")
    page.wait_for_function("document.querySelectorAll('#train-tiles .gallery-item').length == 2")


def test_the_square_moved_by_keys_is_what_is_learned(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    tiles(page).nth(1).locator("button").click()
    page.locator("#train-frame", has_text="photo 1.jpg").wait_for()
    before = page.locator("#train-tiles img").nth(1).get_attribute("src")
    page.locator("#train-crop-x input[type=range]").press("End")
    page.wait_for_function(
        "before => document.querySelectorAll('#train-tiles img')[1].src != before", arg=before
    )
    fill(page, "cropped", steps=1)
    page.click("#train-go")
    status(page, "“cropped” is ready to use.")
    middle, moved, _ = (
        photo.getpixel((5, 5)) for photo in app_server.services.jobs.status().photos
    )
    assert middle[0] > 200 > 50 > middle[2]
    assert moved[2] > 200 > 50 > moved[0]


def test_what_is_wrong_with_the_form_is_said_in_one_sentence(
    train_page: Callable[..., Any], photos: list[Path]
) -> None:
    page = train_page()
    start(page, photos, "../../etc/passwd")
    page.get_by_text("A name consists of 1 to 64 letters").wait_for()
    page.fill("#train-name textarea", "fine")
    page.fill("#train-instance-prompt textarea", " ")
    page.click("#train-go")
    page.get_by_text("The instance prompt is missing").wait_for()
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.get_by_label("Balanced").check()
    page.click("#train-go")
    page.get_by_text("Prior preservation needs a class prompt").wait_for()


def test_the_page_fits_a_phone(train_page: Callable[..., Any], photos: list[Path]) -> None:
    page = train_page(width=390)
    start(page, photos, "phone", steps=2)
    status(page, "“phone” is ready to use.")
    page.locator("#train-samples img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
