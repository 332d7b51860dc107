"""A store in a folder and in memory, as a bucket is: whole files, whole checkpoints, one record."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

import pytest

from svfit_diffusion.errors import ConfigError, StorageError
from svfit_diffusion.files.sums import SUMS_NAME
from svfit_diffusion.fleet.ledger import Ledger
from svfit_diffusion.fleet.mirror import Mirror
from svfit_diffusion.fleet.store import COSTS_NAME, Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.training.config import TrainingConfig

LEFT = ("a/1", "training_run.json", f"checkpoint-1/{SUMS_NAME}", "checkpoint-1/x", "checkpoint-2/x")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = {"folder": str(tmp_path / "out [1]"), "memory": f"memory://{uuid.uuid4()}/out"}
    return Store(place[request.param])


def fill(folder: Path, text: str, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_a_copy_is_what_the_folder_is(store: Store, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    mirror = Mirror(store, "rex", here)
    mirror.pull()
    assert contents(here) == {}
    fill(here, "first", *LEFT, f"checkpoint-2/{SUMS_NAME}", ".hidden/part", ".part.tmp")
    mirror.push()
    fill(here, "later", "a/1", "b")
    for path in (here / "checkpoint-1").iterdir():
        path.unlink()
    mirror.push()
    Mirror(store, "rex", elsewhere).pull()
    wanted = {name: text for name, text in contents(here).items() if not name.startswith(".")}
    assert contents(elsewhere) == wanted
    assert wanted["a/1"] == "later"
    assert not any(name.startswith("checkpoint-1") for name in wanted)


def test_a_checkpoint_that_is_copied_in_part_is_none(store: Store, tmp_path: Path) -> None:
    """Whenever the copying worker dies, what is pulled then is whole."""
    here = tmp_path / "here"
    fill(here, "1", "training_run.json", "checkpoint-1/x", f"checkpoint-1/{SUMS_NAME}")
    mirror = Mirror(store, "rex", here)
    mirror.push()
    fill(here, "22", "training_run.json", "checkpoint-1/x", f"checkpoint-1/{SUMS_NAME}")  # again
    fill(here, "22", "checkpoint-2/x", f"checkpoint-2/{SUMS_NAME}")
    writes = 0

    class Dying(Store):
        def put(self, source: Path, path: str) -> None:
            nonlocal writes
            if writes == limit:
                raise StorageError("dead")
            writes += 1
            super().put(source, path)

    dying = Dying(store.address)
    for limit in range(6):
        writes = 0
        mirror._store = dying
        if limit < 5:
            with pytest.raises(StorageError, match="dead"):
                mirror.push()
        else:
            mirror.push()
        found = tmp_path / str(limit)
        Mirror(store, "rex", found).pull()
        for number in (1, 2):
            own = {t for n, t in contents(found).items() if n.startswith(f"checkpoint-{number}")}
            assert len(own) <= 1, f"mixed after {limit} writes"
        mirror = Mirror(store, "rex", here)  # its successor copies all again
        mirror._there = dict.fromkeys(store.files("rex"))
    assert contents(found) == contents(here)


def test_a_record_is_found_again_and_costs_are_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").touch()
    (tmp_path / "empty").mkdir()
    subjects = [
        FleetSubject(name, TrainingConfig("base", str(tmp_path / folder)))
        for name, folder in (("rex", "photos"), ("mia", "photos"), ("nobody", "empty"))
    ]
    ledger = Ledger(subjects, store)
    assert list(ledger.failures) == ["nobody"]
    assert [subject.name for subject in ledger.open] == ["rex", "mia"]
    record = {"steps": 1, "worker_seconds": 2.0, "settings": subjects[0].settings}
    record["name"] = "rex"
    store.finish("rex", record)
    ledger.settle(subjects[:2], {})
    assert [subject.name for subject in ledger.open] == ["mia"]
    ledger.write_costs()
    store.get(COSTS_NAME, tmp_path / "costs")
    lines = (tmp_path / "costs").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["rex", "nobody"]
    assert "holds no images" in lines[1]
    # The same command again.
    assert Ledger(subjects, store).records == {"rex": record}
    subjects[0].config.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"'rex' is done .* learning_rate 0.05 there and 0.5 now"):
        Ledger(subjects, store)


def test_damaged_records_and_places_that_are_not_there(store: Store, tmp_path: Path) -> None:
    whole = {"steps": 1, "worker_seconds": 2.5, "settings": {}}
    store.write(".fleet/finished/rex.json", json.dumps(whole).encode())
    assert store.finished(["rex"]) == {"rex": whole}
    damages: list[dict[str, Any]] = [
        {"steps": None},
        {"steps": True},
        {"worker_seconds": "1"},
        {"worker_seconds": math.nan},
        {"worker_seconds": -1},
        {"settings": [1]},
        {"settings": None},
    ]
    texts = [json.dumps(whole | damage) for damage in damages]
    for text in ("{", "[]", "{}", "[" * 20_000, *texts):
        store.write(".fleet/finished/rex.json", text.encode())
        with pytest.raises(StorageError, match=r"rex\.json is no record"):
            store.finished(["rex"])
    assert not store.finished(["mia"])
    with pytest.raises(StorageError, match=r"cannot reach .*nowhere/x"):
        store.get("nowhere/x", tmp_path / "x")
    for address in ("nothing://bucket", "s3://bucket"):
        with pytest.raises(ConfigError, match=f"{address}.* cannot be used: (Proto|Install)"):
            Store(address)
