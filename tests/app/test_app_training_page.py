"""Train in a real browser: photos, a training to its end, stopping, leaving and coming back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import LONG, AppServer, arrive, choose, chosen, expect, open_tab, unfold
from PIL import Image

from app.own_words import WORDED_STRENGTH
from app.pages import photo_editor
from app.pages.photo_editor import edited
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


def edit(page: Any, index: int) -> None:
    """Choose a photo and wait until it is the one that is edited."""
    tiles(page).nth(index).locator("button").click()
    page.locator(f"#train-frame img[alt^='Photo {index + 1},']").wait_for()
    page.locator("#train-crop:not([inert])").wait_for()


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


@pytest.mark.parametrize(("preset", "steps"), [("Balanced", 400), ("Quick", 120)])
def test_photos_name_and_prompts_are_enough_to_train(
    train_page: Callable[..., Any],
    photos: list[Path],
    app_server: AppServer,
    held: threading.Event,
    preset: str,
    steps: int,
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    page.fill("#train-name textarea", preset)
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.get_by_label(preset).check()
    page.click("#train-go")
    status(page, f"“{preset}”: step 2 of {steps}")
    page.click("#train-stop")  # which spares the tests the other steps
    held.set()
    status(page, f"“{preset}” is ready to use.")
    config = app_server.services.jobs.status().config
    assert config.train_identifier == "sks"  # as the base is small
    assert not config.with_prior_preservation
    assert config.validation_prompt == ["a photo of sks dog"]
    assert config.class_prompt == "a photo of a dog"


def test_photos_that_the_page_offers_mend_a_lack_of_them(train_page: Callable[..., Any]) -> None:
    page = train_page()
    page.click("#train-go")
    page.locator("#train-drop .field-problem").wait_for()
    refused = page.locator("#train-status", has_text="Not done")
    refused.wait_for()
    page.click("#train-sample-photos")
    tiles(page).nth(4).wait_for()
    page.locator("#train-drop .field-problem").wait_for(state="detached")
    page.locator("#train-problem .problem").wait_for(state="detached")
    refused.wait_for(state="detached")
    assert not page.locator("#train-sample-photos").is_visible()


def test_twenty_steps_to_an_adapter_to_use_fetch_rename_and_delete(
    train_page: Callable[..., Any], photos: list[Path], tmp_path: Path
) -> None:
    page = train_page()
    start(page, photos, "my dog")
    status(page, "Done, 20 steps: “my dog” is ready to use.")
    assert "20 of 20 steps" in page.locator("#train-curves svg").get_attribute("aria-label")
    page.locator("#train-samples .caption-label").first.filter(has_text="step 20").wait_for()
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
    field = "document.querySelector('#train-adapter input').value"
    page.click("#train-delete")
    page.wait_for_function(f"{field} == ''")
    page.click("#train-undo")
    page.wait_for_function(f"{field} == 'Bello'")
    page.locator("#train-undo").wait_for(state="hidden")
    page.click("#train-delete")
    page.wait_for_function(f"{field} == ''")


def test_a_word_of_its_own_is_learned_and_drawn(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    unfold(page, "#train-advanced")
    own_word, prior = page.locator("#train-own-word input"), page.locator("#train-prior input")
    expect(own_word).to_be_checked()  # as the base is small
    expect(prior).not_to_be_checked()
    for ticked in (False, True):
        own_word.set_checked(ticked)
        expect(prior).to_be_checked(checked=not ticked)
    # Whichever is chosen last, a word goes without prior preservation.
    page.get_by_label("Thorough (1000 steps)").check()
    expect(page.get_by_label("Steps", exact=True).first).to_have_value("1000")
    expect(prior).not_to_be_checked()
    start(page, photos, "worded", steps=2)
    status(page, "“worded” is ready to use.")
    adapter = read_adapter(app_server.services.library.path("worded"))
    assert adapter.words["unet"].identifier == "sks"
    config = app_server.services.jobs.status().config
    assert config.output_strength == WORDED_STRENGTH and not config.with_prior_preservation
    page.click("#train-try")
    page.get_by_label("range slider for Strength of worded").wait_for()
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for()
    app_server.services.library.delete("worded")


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


def test_a_reload_finds_the_running_training_and_a_second_one_waits(
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
    for name in ("second", "third", "fourth"):
        if name == "second":
            start(other, photos, name, steps=1)
        else:
            other.fill("#train-name textarea", name)
            other.click("#train-go")
        other.locator("#train-waiting", has_text=name).wait_for()
    # Both see the queue; one is moved up, one is taken off it.
    waiting(page, ["1. second", "2. third", "3. fourth"])
    other.get_by_label("3. fourth").check()
    other.click("#train-move-up")
    waiting(page, ["1. second", "2. fourth", "3. third"])
    page.get_by_label("1. second").check()
    page.click("#train-cancel")
    waiting(other, ["1. fourth", "2. third"])
    held.set()
    status(other, "“third” is ready to use.")
    other.locator("#train-queue").wait_for(state="hidden")


def waiting(page: Any, names: list[str]) -> None:
    """Wait until these stand in the queue."""
    page.wait_for_function(
        "names => [...document.querySelectorAll('#train-waiting label')]"
        ".map(label => label.innerText.trim()).join() === names.join()",
        arg=names,
    )


def test_fake_images_are_refused_by_name_and_the_others_kept(
    train_page: Callable[..., Any], photos: list[Path], tmp_path: Path
) -> None:
    page = train_page()
    fake = tmp_path / "no <b>photo.jpg"
    fake.write_text("<script>alert(1)</script>")
    drop(page, [photos[0], fake, photos[1]])
    tiles(page).nth(1).wait_for()
    expect(tiles(page)).to_have_count(2)
    refused = page.locator("#train-refused").inner_text()
    assert "photo" in refused and "not a JPEG" in refused

    fill(page, "too few")
    page.click("#train-go")
    at_field(page, "drop", "A training takes 3 to 20 photos, you have given 2.")

    drop(page, [photos[2]])
    tiles(page).nth(2).wait_for()
    page.locator("#train-refused").wait_for(state="hidden")
    page.click("#train-remove")
    page.wait_for_function("document.querySelectorAll('#train-tiles .gallery-item').length == 2")


def test_the_square_moved_by_keys_is_what_is_learned(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    edit(page, 1)
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


def test_the_square_dragged_on_the_photo_is_what_is_learned_with_its_caption(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    edit(page, 1)
    square, frame = page.locator(".crop-square"), page.locator(".crop").bounding_box()
    drag(page, square, frame["width"], 0)
    page.wait_for_function("document.querySelector('#train-crop-x input[type=range]').value == 1")
    # Half of its side, from its corner; its upper left stays.
    drag(page, page.locator(".crop-corner"), -frame["height"] / 2, -frame["height"] / 2)
    page.wait_for_function("document.querySelector('#train-crop-zoom input').value > 1.5")
    page.fill("#train-caption textarea", "a photo of sks dog in blue")
    tiles(page).nth(1).filter(has_text="in blue").wait_for()
    fill(page, "dragged", steps=1)
    page.click("#train-go")
    status(page, "“dragged” is ready to use.")
    jobs = app_server.services.jobs
    photo = jobs.photos(jobs.status().run)[1]
    left, top, right, bottom = photo.crop.box(photo.image.size)
    assert left == pytest.approx(80, abs=2) and top == pytest.approx(0, abs=2)
    assert right - left == bottom - top == pytest.approx(40, abs=4)
    assert photo.caption == "a photo of sks dog in blue"


def test_a_photo_that_is_chosen_while_another_is_on_its_way_is_the_one_that_is_edited(
    train_page: Callable[..., Any], photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    answers = [threading.Event() for _ in photos]

    def late(photos: Any, index: int) -> Any:
        assert answers[index].wait(LONG / 1000)
        return edited(photos, index)

    monkeypatch.setattr(photo_editor, "edited", late)
    tiles(page).nth(1).locator("button").click()
    page.locator("#train-crop[inert]").wait_for()
    tiles(page).nth(2).locator("button").click()
    tiles(page).nth(2).locator("button.selected").wait_for()
    assert page.locator("#train-frame img[alt^='Photo 1,']").is_visible()
    for number in (2, 3):
        answers[number - 1].set()
        page.locator(f"#train-frame img[alt^='Photo {number},']").wait_for()
    page.locator("#train-crop:not([inert])").wait_for()


def drag(page: Any, what: Any, dx: float, dy: float) -> None:
    what.scroll_into_view_if_needed()
    box = what.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


def test_what_is_wrong_is_said_at_its_field_from_the_top_of_the_page_down(
    train_page: Callable[..., Any], photos: list[Path]
) -> None:
    page = train_page()
    page.click("#train-go")
    at_field(page, "drop", "A training takes 3 to 20 photos, you have given none.")
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    page.fill("#train-name textarea", "../../etc/passwd")
    page.click("#train-go")
    at_field(page, "name", "A name consists of 1 to 64 letters")
    page.fill("#train-name textarea", "fine")
    page.locator("#train-name .field-problem").wait_for(state="detached")
    page.click("#train-go")
    at_field(page, "instance-prompt", "The instance prompt is missing")
    page.fill("#train-instance-prompt textarea", "sks")
    page.click("#train-go")
    at_field(page, "class-prompt", "The class prompt is missing")
    page.fill("#train-class-prompt textarea", "a photo of a dog")
    # The field is in folded settings, which open.
    unfold(page, "#train-advanced")
    page.locator("#train-learning-rate input").fill("")
    page.locator("#train-advanced").get_by_role("button", name="settings").click()
    page.locator("#train-learning-rate").wait_for(state="hidden")
    page.click("#train-go")
    at_field(page, "learning-rate", "Learning rate: the field is empty")
    assert page.evaluate("document.activeElement.closest('#train-learning-rate') !== null")
    assert page.locator("#train-name textarea").input_value() == "fine"
    assert page.get_by_test_id("toast-body").count() == 0


def at_field(page: Any, field: str, text: str) -> None:
    """Wait until one field is marked, with its sentence, which also stands at the button."""
    page.locator(f"#train-{field} .field-problem", has_text=text).wait_for()
    page.locator("#train-problem", has_text=text).wait_for()
    marked = page.locator("[aria-invalid=true]")
    expect(marked).to_have_count(1)
    expect(page.locator(f"#train-{field} [aria-invalid=true]")).to_have_count(1)
    note = marked.get_attribute("aria-describedby")
    assert text in page.locator(f"#{note}").inner_text()


def test_a_click_on_train_is_answered_at_once(
    train_page: Callable[..., Any],
    photos: list[Path],
    app_server: AppServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    fill(page, "at once", steps=1)
    jobs, answer = app_server.services.jobs, threading.Event()
    check = type(jobs).check_photos

    def late(jobs: Any, count: int) -> None:
        assert answer.wait(LONG / 1000)
        check(jobs, count)

    monkeypatch.setattr(type(jobs), "check_photos", late)
    page.click("#train-go")
    status(page, "Training …")
    button, said = (page.locator(f"#train-{name}").bounding_box() for name in ("go", "status"))
    assert 0 < said["y"] - button["y"] - button["height"] < 40
    answer.set()
    status(page, "“at once” is ready to use.")


def test_the_class_prompt_follows_until_one_is_written(train_page: Callable[..., Any]) -> None:
    page = train_page()
    instance = page.locator("#train-instance-prompt textarea")
    instance.press_sequentially("a photo of sks dog")
    class_prompt_is(page, "a photo of a dog")
    instance.fill("a photo of sks cat")
    class_prompt_is(page, "a photo of a cat")
    page.fill("#train-class-prompt textarea", "an animal")
    with page.expect_response("**/run/predict*"):
        instance.fill("a photo of sks hen")
    class_prompt_is(page, "an animal")


def class_prompt_is(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#train-class-prompt textarea').value === text", arg=text
    )


def test_try_it_now_opens_generate_with_adapter_and_prompt(
    train_page: Callable[..., Any], photos: list[Path]
) -> None:
    page = train_page()
    start(page, photos, "tried", steps=1)
    status(page, "“tried” is ready to use.")  # until then it leads to the one before
    page.click("#train-try")
    page.locator("#generate-go").wait_for()
    page.get_by_label("range slider for Strength of tried").wait_for()
    assert chosen(page, "#generate-adapters") == ["tried"]
    expect(page.locator("#generate-prompt textarea")).to_have_value("a photo of sks dog")
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for()


def test_a_finished_training_fills_the_form_again(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    start(page, photos, "twice", steps=3)
    status(page, "“twice” is ready to use.")
    first = app_server.services.jobs.status()
    other = train_page()
    other.click("#train-again")
    tiles(other).nth(2).wait_for()
    other.locator("#train-status", has_text="filled as it was").wait_for()
    other.click("#train-go")
    status(other, "“twice-2” is ready to use.")
    assert app_server.services.jobs.status().config == first.config


def test_a_draft_survives_a_reload(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    start(page, photos, "../", steps=1)
    at_field(page, "name", "A name consists of")
    page.fill("#train-name textarea", "drafted")
    class_prompt_is(page, "a photo of a dog")
    page.reload()
    arrive(page)
    open_tab(page, "Train")
    tiles(page).nth(2).wait_for()
    # Nothing is opened: what is in folded settings counts as well.
    page.click("#train-go")
    status(page, "“drafted” is ready to use.")
    assert app_server.services.jobs.status().config.max_train_steps == 1
    assert train_page().locator("#train-name textarea").input_value() == ""  # another's browser


def test_pictures_are_seen_by_step_and_the_adapter_of_one_is_saved(
    train_page: Callable[..., Any], photos: list[Path], app_server: AppServer
) -> None:
    page = train_page()
    drop(page, photos)
    tiles(page).nth(2).wait_for()
    fill(page, "by step")
    page.locator("#train-watched-prompt textarea").fill("sks dog\na <b>dog</b> asleep")
    page.click("#train-go")
    status(page, "“by step” is ready to use.")
    images = page.locator("#train-rows img")
    images.nth(2 * 2 * 6 - 1).wait_for()
    assert page.locator("#train-rows thead th").all_inner_texts() == [
        "base model",
        "step 4",
        "step 8",
        "step 12",
        "step 16",
        "step 20",
    ]
    assert images.last.get_attribute("alt") == "“a <b>dog</b> asleep”, picture 2, step 20"
    slider = page.locator("#train-step input[type=range]")
    page.locator("#train-samples .caption-label", has_text="step 20: sks dog").first.wait_for()
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    page.locator("#train-samples .caption-label", has_text="step 8: sks dog").first.wait_for()
    page.click("#train-keep")
    page.locator("#train-kept", has_text="Saved as “by step step 8”.").wait_for()
    assert "by step step 8" in app_server.services.library.names()
    slider.press("Home")
    page.click("#train-keep")
    page.locator("#train-keep-problem", has_text="Nothing was learned by that step").wait_for()


def test_the_page_fits_a_phone(train_page: Callable[..., Any], photos: list[Path]) -> None:
    page = train_page(width=390)
    start(page, photos, "phone", steps=5)  # six columns of pictures
    status(page, "“phone” is ready to use.")
    page.locator("#train-samples img").first.wait_for()
    page.locator("#train-rows img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
