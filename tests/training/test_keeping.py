"""Disks without room in every stage of a training: one sentence, and nothing learned is lost."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import full_disk
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_training import make_config, make_trainer, shifts

from svfit_diffusion.errors import StorageError, UnsavedError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter, state_dict
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training import keeping, run
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.folders import image_files
from svfit_diffusion.training.keeping import save_somewhere
from svfit_diffusion.training.state import begin_run, find_checkpoint, save_checkpoint


def sentences(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of; each is one line."""
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("svfit_diffusion")]
    assert not [message for message in messages if "\n" in message]
    return messages


def draw(prompt: list[str], generator: list[torch.Generator]) -> Any:
    return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in prompt])


def test_class_pictures_end_with_a_sentence_and_go_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "seed": 0, "show_progress": False}
    generate_class_images(draw, tmp_path, "a dog", 2, {}, **options)
    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        full_disk.fill(patch, tmp_path)
        generate_class_images(draw, tmp_path, "a dog", 5, {}, **options)
    assert str(caught.value).startswith(f"cannot write {tmp_path}/class_")
    assert str(caught.value).endswith(
        "_0002.png: No space left on device; make room there, or choose a folder where there is"
    )
    assert len(image_files(tmp_path)) == len(list(tmp_path.iterdir())) == 2
    generate_class_images(draw, tmp_path, "a dog", 5, {}, **options)
    assert len(image_files(tmp_path)) == 5


def test_what_is_encoded_goes_on_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = Scratch(tmp_path)
    tensors = [{"a": torch.full((300,), float(i))} for i in range(4)]
    scratch.put(0, tensors[0])
    with full_disk.small_files(100):
        scratch.put(1, tensors[1])
        scratch.put(2, tensors[2])
    scratch.put(3, tensors[3])
    (warning,) = sentences(caplog)
    assert "kept in memory: cannot write" in warning and "File too large" in warning
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["0.safetensors"]
    for i in range(4):
        found = scratch.get(i)
        assert found is not None and torch.equal(found["a"], tensors[i]["a"])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_no_folder_for_what_is_encoded(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        full_disk.fill(patch, tmp_path, error=error)
        scratch = Scratch(tmp_path / "new")
        scratch.put(0, {"a": torch.ones(1)})
    assert len(sentences(caplog)) == 1
    assert scratch.get(0) == {"a": torch.ones(1)}


def test_a_checkpoint_without_room_leaves_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, folder = make_trainer(tmp_path, 1), tmp_path / "out"
    begin_run(trainer, folder)
    before = save_checkpoint(trainer, folder)
    trainer.stepper.step = 2
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        full_disk.fill(patch, folder)
        save_checkpoint(trainer, folder, limit=1)
    with full_disk.small_files(1000), pytest.raises(StorageError, match="File too large"):
        save_checkpoint(trainer, folder, limit=1)
    assert find_checkpoint("latest", folder) == before
    assert {path.name for path in folder.iterdir()} == {"checkpoint-1", "training_run.json"}


@pytest.fixture
def config(saved_pipe: Path, tmp_path: Path) -> TrainingConfig:
    return make_config(
        tmp_path,
        pretrained_model_name_or_path=str(saved_pipe),
        max_train_steps=3,
        checkpointing_steps=1,
        validation_prompt=["sks dog"],
        validation_steps=2,
        learning_rate=0.1,
        report_to="all",
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The places where an adapter may go, all in this test's folder."""
    places = {name: tmp_path / name for name in ("here", "home", "temporary", "memory")}
    for place in places.values():
        place.mkdir()
    monkeypatch.chdir(places["here"])
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setattr("tempfile.tempdir", str(places["temporary"]))
    monkeypatch.setattr(keeping, "_MEMORY", places["memory"])
    return places


def full_tracker(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_beside_a_full_disk_and_saves_elsewhere(
    config: TrainingConfig,
    elsewhere: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The output folder is full from the start, and so are two of the other places."""
    with monkeypatch.context() as patch:
        full = (Path(config.output_dir), elsewhere["here"], elsewhere["home"])
        full_disk.fill(patch, *full)
        patch.setattr(Accelerator, "log", full_tracker)
        output = run.train(config)
    assert output.parent == elsewhere["temporary"]
    assert {path.name for path in output.iterdir()} == {WEIGHTS_NAME, "before_after.png"}
    folder = Path(config.instance_data_dir).parent
    trained = make_trainer(folder, 3, learning_rate=0.1, max_train_steps=3)
    assert torch.equal(values(output / WEIGHTS_NAME), values_of(trained.adapter()))
    warned = "\n".join(sentences(caplog))
    steps = [f"a checkpoint at step {step}" for step in (1, 2, 3)]
    for part in ("settings and pictures of the base", *steps, "pictures of step 2"):
        assert warned.count(f"without {part}: cannot write") == 1
    for part in ("trackers", "the log"):  # though it is so at every step
        assert warned.count(f"without {part}: [Errno 28]") == 1
    assert f"The adapter is in {output}, move it from there: cannot write" in warned
    assert not any(place.exists() and any(place.iterdir()) for place in full)


def values(path: Path) -> torch.Tensor:
    return values_of(read_adapter(path))


def values_of(adapter: Any) -> torch.Tensor:
    tensors = state_dict(adapter)
    return torch.cat([tensors[name] for name in sorted(tensors) if name.endswith(".delta")])


def test_what_has_room_nowhere_is_in_memory(tmp_path: Path, elsewhere: dict[str, Path]) -> None:
    trainer = make_trainer(tmp_path, 2)
    with full_disk.small_files(1000), pytest.raises(UnsavedError, match="in memory only") as caught:
        save_somewhere(trainer.adapter(), tmp_path / "out")
    assert "File too large" in str(caught.value) and "\n" not in str(caught.value)
    assert not any(any(place.iterdir()) for place in elsewhere.values())
    adapter: Any = caught.value.adapter
    assert torch.equal(values_of(adapter), values_of(trainer.adapter()))
    path = save_somewhere(adapter, tmp_path / "out")
    assert path == tmp_path / "out" / WEIGHTS_NAME and shifts(trainer).any()
    assert torch.equal(values(path), values_of(adapter))
