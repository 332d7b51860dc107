"""A run loses nothing and overwrites nothing, however and whenever it is stopped."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from left_by_runs import shifts, steps_logged
from PIL import Image

from svfit_diffusion.errors import ConfigError, DivergedError, StoppedError
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.training import class_images, output, pictures
from svfit_diffusion.training.arguments import SETTINGS_NAME, parse_args
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.output import LOG_NAME
from svfit_diffusion.training.photo_set import PhotoSet
from svfit_diffusion.training.run import train
from svfit_diffusion.training.signals import Interrupts, Stop
from svfit_diffusion.training.trainer import Trainer

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def make_config(saved_pipe: Path, tmp_path: Path, out: Path) -> MakeConfig:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, colour in enumerate(["red", "orange", "brown"]):
        Image.new("RGB", (24, 24), colour).save(photos / f"{i}.png")

    def make(**changes: Any) -> TrainingConfig:
        settings: dict[str, Any] = {
            "pretrained_model_name_or_path": str(saved_pipe),
            "instance_data_dir": str(photos),
            "instance_prompt": "a photo of sks dog",
            "output_dir": str(out),
            "train_batch_size": 1,
            "max_train_steps": 4,
            "lr_warmup_steps": 0,
            "num_inference_steps": 1,
            "num_validation_images": 1,
            "num_class_images": 4,
            "sample_batch_size": 1,
            "seed": 0,
        }
        return TrainingConfig(**{**settings, **changes})

    return make


def on_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[[], None]
) -> None:
    """Do something within a call of a function, the one of this number."""
    plain, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            act()
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


# What is written


def test_all_of_a_run_is_beside_its_adapter(make_config: MakeConfig, out: Path) -> None:
    """By default: settings, log, single pictures, a checkpoint at the end."""
    prompts = ["a dog on a beach", "a dog"]
    config = make_config(validation_prompt=prompts, validation_steps=2, num_validation_images=2)
    train(config)
    assert steps_logged(out) == [1, 2, 3, 4]
    record = json.loads((out / LOG_NAME).read_text().splitlines()[0])
    assert {"loss", "learning_rate", "sigma_drift", "time"} <= set(record)
    for folder in ("base", "step_00002", "step_00004"):
        names = [path.name for path in sorted((out / "validation" / folder).iterdir())]
        assert names == [f"prompt{row}_{n}.png" for row in (1, 2) for n in (0, 1)]
    with Image.open(out / "validation" / "base" / "prompt2_1.png") as picture:
        assert json.loads(picture.text["svfit"]) == {"prompt": "a dog", "seed": 1}
    assert torch.equal(shifts(out / "checkpoint-4"), shifts(out))
    text = (out / SETTINGS_NAME).read_text()
    assert "# resolution: 16\n" in text and "# train_text_encoder: true\n" in text
    assert parse_args(["--config", str(out / SETTINGS_NAME)]) == config


def test_checkpoints_come_by_themselves(make_config: MakeConfig) -> None:
    trainer = Trainer(make_config(max_train_steps=4000), show_progress=False)

    def due(steps: range) -> list[int]:
        found = []
        for trainer.stepper.step in steps:
            if trainer.is_checkpoint_due():
                found.append(trainer.step)
        return found

    assert due(range(1, 401)) == [200, 400]
    trainer.total_steps = 450
    assert due(range(1, 451)) == [100, 200, 300, 400, 450]
    trainer.config.checkpointing_steps = 200
    assert due(range(1, 451)) == [200, 400]


def test_settings_are_there_from_the_start(
    make_config: MakeConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    act = lambda: seen.append((out / SETTINGS_NAME).exists())  # noqa: E731
    on_call(monkeypatch, Objective, "losses", 1, act)
    train(make_config(max_train_steps=1))
    assert seen == [True]


# What is not overwritten


def test_an_earlier_run_is_not_overwritten_unless_one_says_so(
    make_config: MakeConfig, out: Path
) -> None:
    train(make_config(validation_prompt=["a dog"], validation_steps=3))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds the adapter of an earlier run.*--overwrite.*lat"):
        train(make_config(seed=1))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    train(make_config(seed=1, max_train_steps=2, overwrite=True))
    # Nothing of the earlier run can be taken for this one's.
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (out / "validation" / "step_00003.png").exists()
    assert steps_logged(out) == [1, 2]
    (out / WEIGHTS_NAME).unlink()
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier run"):
        train(make_config())


def test_a_failed_start_overwrites_nothing(make_config: MakeConfig, out: Path) -> None:
    train(make_config())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError):
        train(make_config(overwrite=True, resolution=17))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_named_before_any_work(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("svfit_diffusion.training.stage.load_base", load)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        train(make_config(output_dir=str(tmp_path / "file" / "out")))

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(output.tempfile, "TemporaryFile", read_only)
        with pytest.raises(ConfigError, match=r"out.*Read-only file system"):
            train(make_config())
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match="3 MiB are free"):
        train(make_config())
    assert not (tmp_path / "out").exists()


# Going on


def test_latest_of_none_begins_anew_and_says_so(
    make_config: MakeConfig, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_config(resume_from_checkpoint="latest"))
    assert "Checkpoint 'latest' does not exist" in capsys.readouterr().out
    assert steps_logged(out) == [1, 2, 3, 4]


def test_nothing_left_to_train_says_so_and_keeps_the_adapter(
    make_config: MakeConfig, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_config())
    learned = shifts(out)
    (out / WEIGHTS_NAME).unlink()  # as if it had been killed before it was written
    train(make_config(resume_from_checkpoint="latest"))
    assert "Nothing is left to train" in capsys.readouterr().out
    assert torch.equal(shifts(out), learned)
    assert steps_logged(out) == [1, 2, 3, 4]
    train(make_config(resume_from_checkpoint="latest", max_train_steps=6))
    assert steps_logged(out) == [1, 2, 3, 4, 5, 6]


def test_going_on_from_an_earlier_step_forgets_the_later_ones(
    make_config: MakeConfig, out: Path
) -> None:
    train(make_config(checkpointing_steps=2))
    learned = shifts(out)
    with (out / LOG_NAME).open("a") as log:
        log.write('{"step": ' + "9" * 5_000 + '}\n{"step": 1e999}\n' + "[" * 20_000 + "\n")
        log.write('{"step": 5, "lo')  # a line that was being written
    train(make_config(checkpointing_steps=2, resume_from_checkpoint="checkpoint-2"))
    assert steps_logged(out) == [1, 2, 3, 4]
    assert torch.equal(shifts(out), learned)


def test_a_checkpoint_from_elsewhere_does_not_overwrite(
    make_config: MakeConfig, out: Path, tmp_path: Path
) -> None:
    train(make_config(max_train_steps=2))
    train(make_config(max_train_steps=2, output_dir=str(tmp_path / "other")))
    resumed = {"resume_from_checkpoint": str(tmp_path / "other" / "checkpoint-2")}
    with pytest.raises(ConfigError, match="--overwrite"):
        train(make_config(**resumed))


# Stopping


@pytest.mark.parametrize("stop", [interrupt, terminate])
def test_a_stop_within_a_step_keeps_adapter_and_checkpoint(
    make_config: MakeConfig,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: Callable[[], None],
) -> None:
    with monkeypatch.context() as patch:
        on_call(patch, Objective, "losses", 2, stop)
        train(make_config())
    assert "Stopped after step 2 of 4" in capsys.readouterr().out
    assert torch.equal(shifts(out), shifts(out / "checkpoint-2"))
    assert steps_logged(out) == [1, 2]
    train(make_config(resume_from_checkpoint="latest"))
    train(make_config(output_dir=str(tmp_path / "whole")))
    assert torch.equal(shifts(out), shifts(tmp_path / "whole"))


def test_a_stop_within_validation_does_not_wait_for_it(
    make_config: MakeConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.generate

    def generate(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.step == 2:
            interrupt()
            raise AssertionError("it was drawn")
        return plain(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "generate", generate)
    train(make_config(validation_prompt=["a dog"], validation_steps=2))
    assert torch.equal(shifts(out), shifts(out / "checkpoint-2"))
    assert not (out / "validation" / "step_00002").exists()


@pytest.mark.parametrize(
    ("owner", "name", "number", "drawn"),
    [
        (class_images, "write_atomically", 3, 2),
        (PhotoSet, "_encode", 2, 4),
        (PhotoSet, "cache_conditions", 1, 4),
        (pictures, "draw", 1, 4),
    ],
    ids=["class images", "latents", "prompts", "pictures"],
)
def test_a_stop_before_the_first_step_says_that_there_is_nothing_to_save(
    make_config: MakeConfig,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    drawn: int,
) -> None:
    config = make_config(
        with_prior_preservation=True, class_prompt="a dog", train_text_encoder=False
    )
    with monkeypatch.context() as patch:
        on_call(patch, owner, name, number, terminate)
        with pytest.raises(StoppedError, match="before the first step"):
            train(config)
    assert not (out / WEIGHTS_NAME).exists()
    assert len(list((out / "class_images").glob("*.png"))) == drawn
    train(config)  # goes on with the class images that are there
    assert len(list((out / "class_images").glob("*.png"))) == 4


def test_a_stop_while_saving_does_not_lose_the_adapter(
    make_config: MakeConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_call(monkeypatch, Trainer, "adapter", 1, interrupt)
    train(make_config(checkpointing_steps=9))
    assert shifts(out).any()
    assert not (out / "before_after.png").exists()  # what the stop was for


def test_a_second_interrupt_ends_at_once(
    make_config: MakeConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        terminate()
        terminate()  # of which launchers send several
        interrupt()

    on_call(monkeypatch, Objective, "losses", 2, twice)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(make_config())
    assert not isinstance(raised.value, Stop)
    assert not (out / WEIGHTS_NAME).exists()
    assert steps_logged(out) == [1]


def test_an_error_keeps_what_was_learned_before(
    make_config: MakeConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Objective.losses, []

    def diverging(objective: Objective, positions: list[int]) -> Any:
        calls.append(positions)
        instance, prior = plain(objective, positions)
        return instance * (torch.nan if len(calls) == 3 else 1), prior

    monkeypatch.setattr(Objective, "losses", diverging)
    with pytest.raises(DivergedError, match="step 3"):
        train(make_config())
    assert shifts(out).isfinite().all()
    assert torch.equal(shifts(out), shifts(out / "checkpoint-2"))


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        terminate()
        assert interrupts.noted
        with pytest.raises(Stop), interrupts.at_once():
            raise AssertionError("it was noted")
    assert signal.getsignal(signal.SIGTERM) is before
