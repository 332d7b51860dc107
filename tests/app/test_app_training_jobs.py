"""Background trainings: they learn, stop, fail and disturb nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from app_server import wait_for_trainings
from PIL import Image

from app.base_model import BaseModel
from app.errors import AppError, LibraryError, SettingError
from app.library import AdapterLibrary
from app.photos import CroppedPhoto
from app.presets import PRESETS
from app.settings import Limits
from app.training_jobs import TrainingJobs
from app.training_status import Stage, TrainingStatus
from svfit_diffusion.files.adapter import state_dict
from svfit_diffusion.training import Trainer, TrainingConfig

PHOTOS = [
    CroppedPhoto(f"{colour}.png", Image.new("RGB", (40, 40), colour))
    for colour in ("red", "orange", "brown")
]


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


@pytest.fixture
def library(tmp_path: Path, base: BaseModel) -> AdapterLibrary:
    return AdapterLibrary(tmp_path / "adapters", base, 2**20)


@pytest.fixture
def jobs(tmp_path: Path, base: BaseModel, library: AdapterLibrary) -> Iterator[TrainingJobs]:
    jobs = TrainingJobs(base, library, tmp_path / "training", Limits())
    yield jobs
    jobs.close()


def settings(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "instance_prompt": "a photo of sks dog",
        "train_text_encoder": False,
        "train_batch_size": 1,
        "max_train_steps": 4,
        "lr_warmup_steps": 0,
        "num_inference_steps": 2,
        "num_validation_images": 1,
        "validation_steps": 2,
        "seed": 0,
    }
    return TrainingConfig(**{**values, **changes})


def finished(jobs: TrainingJobs) -> TrainingStatus:
    """The status once the job's thread is through."""
    wait_for_trainings()
    status = jobs.status()
    assert status is not None and status.stage.is_over
    return status


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Trainings wait after their second step: (they have got there, they may go on)."""
    reached, released = threading.Event(), threading.Event()
    steps = Trainer.steps

    def held(trainer: Trainer) -> Iterator[Any]:
        for record in steps(trainer):
            if record.step == 2:
                reached.set()
                assert released.wait(120)
            yield record

    monkeypatch.setattr(Trainer, "steps", held)
    yield reached, released
    released.set()


def test_a_training_ends_in_the_library(
    jobs: TrainingJobs, library: AdapterLibrary, base: BaseModel, tmp_path: Path
) -> None:
    jobs.start("rex", PHOTOS, settings())
    status = finished(jobs)
    assert (status.stage, status.kept, status.adapter_name) == (Stage.FINISHED, True, "rex")
    assert status.step == status.total_steps == len(status.drifts) == 4
    assert status.seconds_left is None
    assert [sample.step for sample in status.samples] == [0, 2, 4]
    assert all(len(images) == 1 for sample in status.samples for images in sample.images)
    assert len(status.photos) == 3

    metadata = library.describe("rex").adapter.metadata
    # What others may take away tells no folder of the server's.
    name = Path(base.source).name
    assert (metadata.base_model, metadata.instance_prompt) == (name, "a photo of sks dog")
    # Photos and whatever else was needed are gone.
    assert not list((tmp_path / "training").iterdir())


def test_it_is_the_training_of_the_script(
    jobs: TrainingJobs, library: AdapterLibrary, base: BaseModel, tmp_path: Path
) -> None:
    jobs.start("rex", PHOTOS, settings(train_text_encoder=True))
    finished(jobs)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, photo in enumerate(PHOTOS):
        photo.square().save(folder / f"{i}.png")
    config = settings(
        train_text_encoder=True,
        pretrained_model_name_or_path=base.source,
        instance_data_dir=str(folder),
    )
    trainer = Trainer(config, show_progress=False)
    list(trainer.steps())
    expected = state_dict(trainer.adapter())
    actual = state_dict(library.describe("rex").adapter)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_trainings_wait_for_their_turn_in_an_order_that_can_be_changed(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.start("rex", PHOTOS, settings())
    assert reached.wait(120)
    runs = {name: jobs.start(name, PHOTOS, settings(max_train_steps=1)) for name in "abc"}
    assert [status.adapter_name for status in jobs.waiting()] == ["a", "b", "c"]
    assert all(status.stage is Stage.WAITING for status in jobs.waiting())
    jobs.move_up(runs["c"])
    jobs.move_up(runs["a"])  # the first stays the first
    jobs.move_up("no such")
    assert [status.adapter_name for status in jobs.waiting()] == ["a", "c", "b"]
    jobs.cancel(runs["a"])
    cancelled = jobs.status(runs["a"])
    assert cancelled is not None and (cancelled.stage, cancelled.kept) == (Stage.STOPPED, False)
    assert jobs.status() == jobs.status(jobs.status().run)  # type: ignore[union-attr]
    released.set()
    assert finished(jobs).adapter_name == "b"
    assert library.names() == ["b", "c", "rex"]
    assert jobs.waiting() == [] and jobs.photos(runs["b"]) == tuple(PHOTOS)


def test_a_queue_has_an_end(
    jobs: TrainingJobs, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.start("rex", PHOTOS, settings())
    assert reached.wait(120)
    for _ in range(Limits().max_waiting_trainings):
        jobs.start("tom", PHOTOS, settings())
    with pytest.raises(AppError, match="8 trainings are waiting, and no more are taken"):
        jobs.start("one more", PHOTOS, settings())
    threading.Timer(0.1, released.set).start()
    jobs.close()
    assert not jobs.waiting()


def test_cancelling_the_one_that_runs_keeps_what_it_learned(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    run = jobs.start("rex", PHOTOS, settings())
    assert reached.wait(120)
    jobs.cancel(run)
    released.set()
    assert finished(jobs).stage is Stage.STOPPED
    assert library.names() == ["rex"]


def test_the_adapter_of_a_step_is_the_one_a_shorter_run_ends_with(
    jobs: TrainingJobs, library: AdapterLibrary
) -> None:
    constant = {"lr_scheduler": "constant", "validation_steps": 2}
    run = jobs.start("rex", PHOTOS, settings(**constant))
    finished(jobs)
    jobs.start("short", PHOTOS, settings(max_train_steps=2, **constant))
    finished(jobs)
    assert jobs.keep_step(run, 3) == "rex step 2"  # the last pictures by then
    kept, short = (state_dict(library.describe(n).adapter) for n in ("rex step 2", "short"))
    last = state_dict(library.describe("rex").adapter)
    assert kept.keys() == short.keys()
    assert all(torch.equal(kept[name], short[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    for wrong in ((run, 0), ("no such", 2)):
        with pytest.raises(LibraryError, match="Nothing was learned by that step"):
            jobs.keep_step(*wrong)


def test_several_prompts_are_watched_and_captions_are_learned(jobs: TrainingJobs) -> None:
    photos = [PHOTOS[0].with_caption("a photo of sks dog  at\nsea"), *PHOTOS[1:]]
    watched = ["a photo of sks dog", "sks dog in the snow"]
    seen = []

    def keep(trainer: Trainer) -> Iterator[Any]:
        seen.extend(photo.prompt for photo in trainer.photo_sets[0].photos)
        yield from steps(trainer)

    steps = Trainer.steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "steps", keep)
        jobs.start("rex", photos, settings(validation_prompt=watched, num_validation_images=2))
        status = finished(jobs)
    assert seen == ["a photo of sks dog at sea", "a photo of sks dog", "a photo of sks dog"]
    assert all(list(map(len, sample.images)) == [2, 2] for sample in status.samples)


def test_stopping_keeps_what_was_learned(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.start("rex", PHOTOS, settings())
    assert reached.wait(120)
    jobs.stop()
    released.set()
    status = finished(jobs)
    assert (status.stage, status.step, status.kept) == (Stage.STOPPED, 2, True)
    shifts = library.describe("rex").adapter.deltas["unet"].values()
    assert max(float(shift.abs().max()) for shift in shifts) > 0


def test_stopping_before_the_first_step_keeps_nothing(
    jobs: TrainingJobs, library: AdapterLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*args: Any, **kwargs: Any) -> None:
        jobs.stop()

    monkeypatch.setattr("app.training_job.generate_class_images", generate)
    config = settings(with_prior_preservation=True, class_prompt="a dog", num_class_images=9)
    jobs.start("rex", PHOTOS, config)
    status = finished(jobs)
    assert (status.stage, status.step, status.kept) == (Stage.STOPPED, 0, False)
    assert library.names() == []


def test_class_images_are_drawn_once_for_all_trainings(jobs: TrainingJobs, tmp_path: Path) -> None:
    config = settings(with_prior_preservation=True, class_prompt="a dog", num_class_images=5)
    jobs.start("rex", PHOTOS, config)
    assert finished(jobs).stage is Stage.FINISHED
    (folder,) = (tmp_path / "training" / "class_images").iterdir()
    drawn = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(drawn) == 5
    jobs.start("tom", PHOTOS, config)
    finished(jobs)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == drawn
    jobs.start("cat", PHOTOS, settings(**{**vars(config), "class_prompt": "../../a cat"}))
    finished(jobs)
    assert len(list((tmp_path / "training" / "class_images").iterdir())) == 2


def test_a_taken_name_gets_a_number(jobs: TrainingJobs) -> None:
    for expected in ("rex", "rex-2"):
        jobs.start("rex", PHOTOS, settings(max_train_steps=1))
        assert finished(jobs).adapter_name == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("rex", PHOTOS[:2], settings()), SettingError, "3 to 20 photos, you have given 2"),
        (("rex", PHOTOS * 7, settings()), SettingError, "you have given 21"),
        (("../rex", PHOTOS, settings()), LibraryError, "A name consists of"),
    ],
)
def test_bad_requests_are_refused_before_anything_happens(
    jobs: TrainingJobs,
    tmp_path: Path,
    arguments: tuple[str, list[Image.Image], TrainingConfig],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        jobs.start(*arguments)
    assert jobs.status() is None
    assert not (tmp_path / "training").exists()


def test_a_failure_is_a_sentence_and_the_next_training_works(
    jobs: TrainingJobs,
    library: AdapterLibrary,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs.start("rex", PHOTOS, settings(resolution=17))
    status = finished(jobs)
    assert status.stage is Stage.FAILED
    assert "resolution 17 does not fit this base model" in status.message

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda *_: 1 / 0)
        jobs.start("rex", PHOTOS, settings())
        status = finished(jobs)
    assert status.stage is Stage.FAILED and not status.kept
    assert "ZeroDivisionError" in caplog.text and "ZeroDivisionError" not in status.message
    assert library.names() == []

    jobs.start("rex", PHOTOS, settings(max_train_steps=1))
    assert finished(jobs).stage is Stage.FINISHED


def test_closing_stops_and_keeps(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.close()  # nothing to do
    jobs.start("rex", PHOTOS, settings(max_train_steps=1000))
    assert reached.wait(120)
    threading.Timer(0.1, released.set).start()
    jobs.close()
    status = jobs.status()
    assert status is not None and status.stage is Stage.STOPPED
    assert library.names() == ["rex"]


def test_generation_is_undisturbed_by_a_training(
    jobs: TrainingJobs, base: BaseModel, hold: tuple[threading.Event, threading.Event]
) -> None:
    """The same picture to the last bit: before, while a training holds a step, and beside it."""
    reached, released = hold
    view = base.view()
    before = tiny.run_pipeline(view)
    jobs.start("rex", PHOTOS, settings(train_text_encoder=True, max_train_steps=30))
    assert reached.wait(120)
    assert torch.equal(tiny.run_pipeline(view), before)
    assert torch.equal(tiny.run_pipeline(base.view()), before)
    released.set()
    beside = []
    while not (status := jobs.status()) or not status.stage.is_over:
        beside.append(torch.equal(tiny.run_pipeline(view), before))
    assert all(beside)
    assert status.stage is Stage.FINISHED
    assert torch.equal(tiny.run_pipeline(view), before)


def test_presets_are_within_the_limits() -> None:
    for preset in PRESETS.values():
        config = settings(
            max_train_steps=preset.steps,
            learning_rate=preset.learning_rate,
            with_prior_preservation=preset.prior_preservation,
            class_prompt="a dog",
        )
        assert config.max_train_steps is not None
        assert config.max_train_steps <= Limits().max_training_steps
