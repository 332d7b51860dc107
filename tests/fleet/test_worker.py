"""A worker in this process: packs on one base, kept in memory as in a bucket, stopped and dead."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from left_by_runs import shifts, steps_logged
from tiny_training import make_config

from svfit_diffusion.errors import StorageError
from svfit_diffusion.fleet import scratch
from svfit_diffusion.fleet.mirror import Mirror
from svfit_diffusion.fleet.scratch import LockedFolder
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.fleet.worker import Worker
from svfit_diffusion.training import shared_pass, stage
from svfit_diffusion.training.objective import Losses, losses_in_one_pass
from svfit_diffusion.training.run import train


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid.uuid4()}/out")


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Worker:
    return Worker(store.address, str(tmp_path / "scratch"))


@pytest.fixture
def subject(saved_pipe: Path, tmp_path: Path) -> Callable[..., FleetSubject]:
    """Makes a subject of three steps that are all kept."""

    def make(name: str, **changes: Any) -> FleetSubject:
        common: dict[str, Any] = {
            "pretrained_model_name_or_path": str(saved_pipe),
            "resolution": 16,
            "max_train_steps": 3,
            "checkpointing_steps": 1,
            "seed": len(name),
        }
        return FleetSubject(name, make_config(tmp_path, **common | changes))

    return make


def fetched(store: Store, name: str, folder: Path) -> Path:
    Mirror(store, name, folder).pull()
    return folder


def assert_as_alone(found: Path, subject: FleetSubject, folder: Path) -> None:
    """To rounding, as tests/training/test_several_subjects.py has it."""
    expected = shifts(train(replace(subject.config, output_dir=str(folder))))
    assert expected.abs().max() > 0
    assert (shifts(found) - expected).norm() <= 1e-3 * expected.norm()


def during(call: int, action: Callable[[list[Losses]], object]) -> Callable[..., list[Losses]]:
    """The losses of steps, with something done in one of them."""
    calls = 0

    def losses(*asked: Any) -> list[Losses]:
        nonlocal calls
        calls += 1
        found = losses_in_one_pass(*asked)
        if calls == call:
            action(found)
        return found

    return losses


def test_packs_follow_each_other_on_one_base(
    worker: Worker,
    store: Store,
    subject: Callable[..., FleetSubject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[Any] = []
    plain = stage.load_base
    monkeypatch.setattr(stage, "load_base", lambda *of: loads.append(of) or plain(*of))
    (tmp_path / "empty").mkdir()
    rex, mia = subject("rex", max_train_steps=1), subject("mia_", max_train_steps=2)
    tom = subject("tom__", max_train_steps=2)
    photos = Store(f"memory://{uuid.uuid4()}")
    for path in Path(tom.config.instance_data_dir).iterdir():
        photos.put(path, path.name)
    tom_elsewhere = replace(tom, config=replace(tom.config, instance_data_dir=photos.address))
    nobody = subject("nobody", instance_data_dir=str(tmp_path / "empty"))
    nowhere = subject("nowhere", instance_data_dir="memory://nowhere")
    failures = worker.train([rex, nobody, mia, nowhere])
    assert set(failures) == {"nobody", "nowhere"}
    assert all("holds no images" in reason for reason in failures.values())
    assert not worker.train([tom_elsewhere])
    assert len(loads) == 1
    assert not worker.train([subject("other", rank="2", max_train_steps=1)])  # of another group
    assert len(loads) == 2
    own = fetched(store, "tom__", tmp_path / "there")
    assert (own / "before_after.png").exists()
    assert_as_alone(own, tom, tmp_path / "alone")
    records = store.finished(["rex", "mia_", "tom__", "nobody"])
    assert {name: record["steps"] for name, record in records.items()} == {
        "rex": 1,
        "mia_": 2,
        "tom__": 2,
    }
    assert all(record["worker_seconds"] > 0 for record in records.values())
    assert not worker.train([rex, tom])
    assert store.finished(records) == records  # not again
    assert not worker.seen().steps
    assert not list((tmp_path / "scratch").glob("*/runs/*"))
    worker.close()
    assert not list((tmp_path / "scratch").iterdir())


def test_another_goes_on_where_one_died(
    worker: Worker,
    store: Store,
    subject: Callable[..., FleetSubject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rex, mia = subject("rex", max_train_steps=1), subject("mia_", max_train_steps=4)
    dead = RuntimeError("dead")

    def die(_: Any) -> None:
        monkeypatch.setattr(Store, "put", refuse)  # what dies brings nothing more to the store
        raise dead

    def refuse(*_: Any) -> None:
        raise StorageError("dead")

    with monkeypatch.context() as patch:
        patch.setattr(shared_pass, "losses_in_one_pass", during(3, die))
        with pytest.raises(RuntimeError, match="dead"):
            worker.train([rex, mia])
    monkeypatch.undo()
    before = store.finished(["rex", "mia_"])
    assert list(before) == ["rex"]
    made: list[int] = []
    monkeypatch.setattr(
        shared_pass, "losses_in_one_pass", during(1, lambda found: made.append(len(found)))
    )
    other = Worker(store.address, str(tmp_path / "scratch"))
    assert not other.train([mia])
    own = fetched(store, "mia_", tmp_path / "there")
    assert steps_logged(own) == [1, 2, 3, 4]
    assert made == [1]
    record = store.finished(["mia_"])["mia_"]
    assert record["begun"] == 2
    assert record["steps"] == 4
    kept = json.loads((own / "checkpoint-2" / "training_state.json").read_text())
    last = json.loads((own / "checkpoint-4" / "training_state.json").read_text())
    assert kept["run"] == last["run"]  # the same run, gone on with
    assert_as_alone(own, mia, tmp_path / "alone")


def test_stopped_it_has_brought_all_to_the_store(
    worker: Worker,
    store: Store,
    subject: Callable[..., FleetSubject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rex = subject("rex", checkpointing_steps=100)
    seen = []

    def stop(_: Any) -> None:
        seen.append(worker.seen().steps)
        worker.stop()

    monkeypatch.setattr(shared_pass, "losses_in_one_pass", during(2, stop))
    assert not worker.train([rex])
    assert seen == [{"rex": (1, 3)}]
    assert not store.finished(["rex"])
    assert steps_logged(fetched(store, "rex", tmp_path / "stopped")) == [1, 2]
    assert not Worker(store.address, str(tmp_path / "scratch")).train([rex])
    assert steps_logged(fetched(store, "rex", tmp_path / "there")) == [1, 2, 3]


def test_a_base_that_cannot_be_loaded_and_a_loss_that_is_lost_are_named(
    worker: Worker,
    store: Store,
    subject: Callable[..., FleetSubject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = [subject(n, pretrained_model_name_or_path=str(tmp_path / "none")) for n in "ab"]
    failures = worker.train(wrong)
    assert list(failures) == ["a", "b"]
    assert all("cannot load base model" in reason for reason in failures.values())

    def spoil(found: list[Losses]) -> None:
        found[0] = (found[0][0] * torch.inf, None)

    with monkeypatch.context() as patch:
        patch.setattr(shared_pass, "losses_in_one_pass", during(2, spoil))
        failures = worker.train([subject("rex"), subject("mia_", max_train_steps=2)])
    assert list(failures) == ["rex"]
    assert "the loss became inf" in failures["rex"]
    assert list(store.finished(["rex", "mia_"])) == ["mia_"]
    assert steps_logged(fetched(store, "rex", tmp_path / "there")) == [1]
    # Given again, it goes on; what is left of it on the base does not matter.
    assert not worker.train([subject("rex")])
    assert list(store.finished(["rex"])) == ["rex"]


def test_folders_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_SETTLED", -1.0)
    living, dead = LockedFolder(tmp_path), LockedFolder(tmp_path)
    dead._lock.release()  # as the system does after a death
    strange = tmp_path / "svfit-fleet-strange"
    strange.mkdir()
    third = LockedFolder(tmp_path)
    assert set(tmp_path.iterdir()) == {living.path, third.path, strange}
