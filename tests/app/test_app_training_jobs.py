"""Background trainings: they learn, stop, fail and disturb nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

from app.base_model import BaseModel
from app.errors import AppError, LibraryError, SettingError
from app.library import AdapterLibrary
from app.presets import PRESETS
from app.settings import Limits
from app.training_jobs import TrainingJobs
from app.training_status import Stage, TrainingStatus
from svfit_diffusion.files.adapter import state_dict
from svfit_diffusion.training import Trainer, TrainingConfig

SQUARES = [Image.new("RGB", (40, 40), colour) for colour in ("red", "orange", "brown")]


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
    for thread in threading.enumerate():
        if thread.name.startswith("training of"):
            thread.join(120)
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
    jobs.start("rex", SQUARES, settings())
    status = finished(jobs)
    assert (status.stage, status.kept, status.adapter_name) == (Stage.FINISHED, True, "rex")
    assert status.step == status.total_steps == len(status.drifts) == 4
    assert status.seconds_left is None
    assert [sample.step for sample in status.samples] == [0, 2, 4]
    assert all(len(sample.images) == 1 for sample in status.samples)
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
    jobs.start("rex", SQUARES, settings(train_text_encoder=True))
    finished(jobs)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, square in enumerate(SQUARES):
        square.save(folder / f"{i}.png")
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


def test_a_second_request_is_told_so_and_changes_nothing(
    jobs: TrainingJobs, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.start("rex", SQUARES, settings())
    assert reached.wait(120)
    with pytest.raises(AppError, match="“rex” is being trained"):
        jobs.start("tom", SQUARES, settings())
    released.set()
    assert finished(jobs).adapter_name == "rex"
    jobs.start("tom", SQUARES, settings(max_train_steps=1))
    assert finished(jobs).adapter_name == "tom"


def test_stopping_keeps_what_was_learned(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.start("rex", SQUARES, settings())
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

    monkeypatch.setattr("app.training_jobs.generate_class_images", generate)
    config = settings(with_prior_preservation=True, class_prompt="a dog", num_class_images=9)
    jobs.start("rex", SQUARES, config)
    status = finished(jobs)
    assert (status.stage, status.step, status.kept) == (Stage.STOPPED, 0, False)
    assert library.names() == []


def test_class_images_are_drawn_once_for_all_trainings(jobs: TrainingJobs, tmp_path: Path) -> None:
    config = settings(with_prior_preservation=True, class_prompt="a dog", num_class_images=5)
    jobs.start("rex", SQUARES, config)
    assert finished(jobs).stage is Stage.FINISHED
    (folder,) = (tmp_path / "training" / "class_images").iterdir()
    drawn = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(drawn) == 5
    jobs.start("tom", SQUARES, config)
    finished(jobs)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == drawn
    jobs.start("cat", SQUARES, settings(**{**vars(config), "class_prompt": "../../a cat"}))
    finished(jobs)
    assert len(list((tmp_path / "training" / "class_images").iterdir())) == 2


def test_a_taken_name_gets_a_number(jobs: TrainingJobs) -> None:
    for expected in ("rex", "rex-2"):
        jobs.start("rex", SQUARES, settings(max_train_steps=1))
        assert finished(jobs).adapter_name == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("rex", SQUARES[:2], settings()), SettingError, "3 to 20 photos, you have given 2"),
        (("rex", SQUARES * 7, settings()), SettingError, "you have given 21"),
        (("rex", SQUARES, settings(instance_prompt=" ")), SettingError, "prompt is missing"),
        (("rex", SQUARES, settings(max_train_steps=9999)), SettingError, "at most 5000 steps"),
        (("rex", SQUARES, settings(resolution=4096)), SettingError, "at most 1024 pixels"),
        (("rex", SQUARES, settings(class_prompt="x" * 2000)), SettingError, "1000 characters"),
        (("../rex", SQUARES, settings()), LibraryError, "A name consists of"),
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
    jobs.start("rex", SQUARES, settings(resolution=17))
    status = finished(jobs)
    assert status.stage is Stage.FAILED
    assert "resolution 17 does not fit this base model" in status.message

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda *_: 1 / 0)
        jobs.start("rex", SQUARES, settings())
        status = finished(jobs)
    assert status.stage is Stage.FAILED and not status.kept
    assert "ZeroDivisionError" in caplog.text and "ZeroDivisionError" not in status.message
    assert library.names() == []

    jobs.start("rex", SQUARES, settings(max_train_steps=1))
    assert finished(jobs).stage is Stage.FINISHED


def test_closing_stops_and_keeps(
    jobs: TrainingJobs, library: AdapterLibrary, hold: tuple[threading.Event, threading.Event]
) -> None:
    reached, released = hold
    jobs.close()  # nothing to do
    jobs.start("rex", SQUARES, settings(max_train_steps=1000))
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
    jobs.start("rex", SQUARES, settings(train_text_encoder=True, max_train_steps=30))
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
