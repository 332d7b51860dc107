"""What visitors leave on disk is bounded, and what they would miss does not make room."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from app_server import AppServer, write_random_adapter
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from test_app_training_jobs import PHOTOS, finished, settings
from test_entrance_sessions import events

from app import passing
from app.album import Album
from app.base_model import BaseModel
from app.disk import Stored, oldest
from app.errors import BusyError, LibraryError, SettingError
from app.exports import Exports, Form
from app.owners import OwnedLibrary, Owners
from app.picture import PictureSettings
from app.settings import Limits
from app.training_jobs import TrainingJobs
from app.training_status import Stage
from app.visitors import Visitor, acting_as

ANN, BOB = (Visitor(name, "127.0.0.1", name) for name in ("ann", "bob"))
MEGABYTE = 2**20
LIMITS = Limits(
    max_visitor_picture_megabytes=2,
    max_all_picture_megabytes=3,
    max_visitor_adapters=2,
    max_all_adapter_megabytes=1,
    max_all_export_megabytes=1,
    max_all_class_megabytes=1,
)
DAY = 24 * 60 * 60
NOISE = Image.effect_noise((700, 740), 100).convert("L")  # some 500 kB as a PNG
PIXELS = 700 * 740 // 3


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


def aged(path: Path, days: float) -> Path:
    """A file as if it had been written so long ago."""
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def keep(album: Album, days: float) -> Path:
    return aged(album.keep(NOISE, PictureSettings("a dog")), days)


def test_the_oldest_go_and_no_more_than_must() -> None:
    files = [Stored(Path(name), 10, number) for number, name in enumerate("abc")]
    assert [len(oldest(files, excess)) for excess in (-5, 0, 1, 10, 11, 100)] == [0, 0, 1, 1, 2, 3]
    assert oldest(files, 11) == files[:2]


def test_the_oldest_pictures_make_room_and_favourites_stay(tmp_path: Path) -> None:
    album = Album(tmp_path, LIMITS)
    with acting_as(ANN):
        assert album.make_room(PIXELS) == 0, "before there is any picture"
        favourite, older, old, new = (keep(album, days) for days in (4, 3, 2, 1))
        album.toggle_favourite(favourite)
        assert album.make_room(PIXELS) == 1
        assert [path.exists() for path in (favourite, older, old, new)] == [True, False, True, True]
        for path in (old, new):
            album.toggle_favourite(path)
        keep(album, 0)
        album.make_room(PIXELS)
        for path, _ in album.find():
            if path.name not in album.favourites():
                album.toggle_favourite(path)
        last = keep(album, 0)
        album.toggle_favourite(last)
        with pytest.raises(BusyError, match="no room beside its favourites"):
            album.make_room(PIXELS)
        assert {favourite, old, new, last} <= {path for path, _ in album.find()}


def test_others_pictures_make_room_only_when_they_are_old(tmp_path: Path) -> None:
    album = Album(tmp_path, LIMITS)
    house = [keep(album, 100), keep(album, 100)]
    (tmp_path / "grids").mkdir()
    house.append(house.pop().rename(tmp_path / "grids" / "grid.png"))
    with acting_as(BOB):
        favourite, older, *young = (keep(album, days) for days in (50, 40, 20, 10))
        album.toggle_favourite(favourite)
    with acting_as(ANN):
        for _ in range(2):
            keep(album, 0)
            assert album.make_room(PIXELS) == 0
        assert not older.exists()
        with pytest.raises(BusyError, match="no room for more pictures"):
            album.make_room(4 * PIXELS)
        assert len(album.find()) == 2, "nothing is removed in vain"
    assert all(path.exists() for path in (favourite, *young, *house))
    with acting_as(BOB):
        (favourite.parent / "favourites.json").write_text("{ damaged")
        with pytest.raises(BusyError):
            album.make_room(3 * PIXELS)
    assert favourite.exists() and all(path.exists() for path in young)


def test_whoever_runs_the_app_has_no_bound(tmp_path: Path) -> None:
    album = Album(tmp_path, LIMITS)
    kept = [keep(album, days) for days in range(5)]
    assert album.make_room(10**9) == 0
    assert all(path.exists() for path in kept)


@pytest.fixture
def library(base: BaseModel, tmp_path: Path) -> OwnedLibrary:
    owners = Owners(tmp_path / "owners.json")
    return OwnedLibrary(tmp_path / "adapters", base, LIMITS, owners, "owned")


def test_a_visitor_has_so_many_adapters(library: OwnedLibrary, tmp_path: Path) -> None:
    file = write_random_adapter(tmp_path / "one.safetensors", 7)
    with acting_as(ANN):
        for _ in range(2):
            library.add(file)
        for act in (lambda: library.add(file), library.check_room):
            with pytest.raises(LibraryError, match="2 adapters here, as many as one visitor may"):
                act()
        library.delete("one-2")
        library.add(file, "other")
        with pytest.raises(LibraryError, match="delete one first"):
            library.restore("one-2")
        library.delete("other")
        assert library.restore("one-2") == "one-2", "it has not been lost"
        assert library.add(file, "trained", promised=True) == "trained"
    with acting_as(BOB):
        library.add(file)
        library.check_room(MEGABYTE // 2)
        with pytest.raises(LibraryError, match="no room for more adapters"):
            library.check_room(MEGABYTE)
    library.check_room(10 * MEGABYTE)


def test_a_training_that_could_not_be_kept_does_not_begin(
    library: OwnedLibrary, base: BaseModel, tmp_path: Path
) -> None:
    jobs = TrainingJobs(base, library, tmp_path / "trainings", LIMITS)
    file = write_random_adapter(tmp_path / "one.safetensors", 7)
    with acting_as(ANN):
        library.add(file)
        jobs.start("rex", PHOTOS, settings(max_train_steps=1))
        library.add(file)  # the last place, while the training goes on
        assert finished(jobs).stage is Stage.FINISHED
        assert "rex" in library.names()
        with pytest.raises(LibraryError, match="as many as one visitor may"):
            jobs.start("max", PHOTOS, settings(max_train_steps=1))
    assert not jobs.waiting()


def test_what_was_put_aside_goes_after_a_day(library: OwnedLibrary, tmp_path: Path) -> None:
    file = write_random_adapter(tmp_path / "one.safetensors", 7)
    for name in ("old", "new"):
        library.add(file, name)
        library.delete(name)
        aside = library.folder / ".deleted" / f"{name}.safetensors"
        assert aside.exists()
        aged(aside, 2)
    assert not (library.folder / ".deleted" / "old.safetensors").exists()


def test_exports_make_room_for_the_next(base: BaseModel, tmp_path: Path) -> None:
    exports = Exports(tmp_path / "exports", base, LIMITS)
    adapters = [write_random_adapter(tmp_path / f"{n}.safetensors", n) for n in range(3)]
    files = [exports.adapter_file(path.stem, path) for path in adapters]
    assert all(file.exists() for file in files)
    for file, days in zip(files, (1, 2, 3), strict=True):
        file.write_bytes(b"x" * (MEGABYTE // 3))
        aged(file, days)
    assert exports.adapter_file("2", adapters[2]) == files[2], "still there, and the newest now"
    lora = exports.written(Form.LORA, "0", adapters[0])
    assert lora.exists() and files[2].exists() and not files[1].exists()
    with acting_as(ANN), pytest.raises(BusyError, match="merge it where you have the base model"):
        exports._most = base.weight_bytes - 1
        exports.written(Form.FOLDER, "0", adapters[0])
    assert exports.written(Form.FOLDER, "0", adapters[0]).exists(), "who runs the app may"


def test_exports_of_a_process_that_is_gone_go(base: BaseModel, tmp_path: Path) -> None:
    for name, days in (("old", 2), ("new", 0.5)):
        half = tmp_path / "exports" / name / "tmp" / "unet.safetensors"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
        aged(half, days)
    Exports(tmp_path / "exports", base, LIMITS)
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["new"]


def test_class_pictures_make_room(library: OwnedLibrary, base: BaseModel, tmp_path: Path) -> None:
    jobs = TrainingJobs(base, library, tmp_path / "trainings", LIMITS)
    others = tmp_path / "trainings" / "class_images" / "other"
    others.mkdir(parents=True)
    for number, days in enumerate((2, 1)):
        image = others / f"class_00000000_000{number}.png"
        image.write_bytes(b"x" * (MEGABYTE - 100_000))
        aged(image, days)
    prior = {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2}
    jobs.start("rex", PHOTOS, settings(max_train_steps=1, **prior))
    assert finished(jobs).stage is Stage.FINISHED
    assert [path.name for path in others.iterdir()] == ["class_00000000_0001.png"]
    assert len(list(others.parent.glob("*/*.png"))) == 3


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The app's folder for what passes, of which the environment says nothing."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path.resolve() / f"svfit-app-{os.getuid()}"


def test_what_died_with_a_process_goes_when_it_is_a_day_old(place: Path) -> None:
    for name, days in (("old", 2), ("new", 0.5)):
        (place / name).mkdir(parents=True)
        (place / name / "photo.png").write_bytes(b"x")
        aged(place / name / "photo.png", days)
    passing.take_place()
    assert [path.name for path in place.iterdir()] == ["new"]
    assert os.environ["GRADIO_TEMP_DIR"] == str(place)


def test_the_environment_may_name_another_place(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "elsewhere"))
    passing.take_place()
    assert not place.exists()
    assert passing.exports_folder() == (tmp_path / "elsewhere" / "exports").resolve()


def test_somebody_elses_place_is_not_taken(place: Path, tmp_path: Path) -> None:
    place.symlink_to(tmp_path)
    with pytest.raises(SettingError, match="GRADIO_TEMP_DIR"):
        passing.take_place()
    place.unlink()
    passing.take_place()
    assert place.stat().st_mode & 0o077 == 0, "no other user looks in"


def test_pictures_on_the_way_make_room_and_uploads_do_not(place: Path, tmp_path: Path) -> None:
    passing.take_place()

    def file(folder: Path, name: str, days: float) -> str:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * MEGABYTE)
        return str(aged(folder / name, days))

    old, new, upload = (
        file(place, name, days) for name, days in (("old", 2), ("new", 1), ("upload", 3))
    )
    export = file(place / "exports", "export", 4)
    foreign = file(tmp_path / "elsewhere", "foreign", 4)
    blocks: Any = SimpleNamespace(
        temp_file_sets=[{upload}, {old, new, export}, {foreign}, set()], upload_file_set={upload}
    )
    passing.trim(passing._shown(blocks), MEGABYTE)
    paths = (old, new, upload, export, foreign)
    assert [Path(path).exists() for path in paths] == [False, True, True, True, True]


def test_exports_are_not_copied_and_lists_of_pictures_not_handed_out(
    app_server: AppServer,
) -> None:
    services, passed = app_server.services, Path(os.environ["GRADIO_TEMP_DIR"])
    fns = app_server.server.get_blocks().fns
    fn = next(number for number, fn in fns.items() if fn.api_name == "page_build")
    with httpx.Client(base_url=app_server.url, timeout=60) as client:
        wanted = {"data": ["rex"], "fn_index": fn, "session_hash": "exporting"}
        client.post("gradio_api/queue/join", json=wanted)
        assert ".safetensors" in json.dumps(events(client, "exporting"))
    (export,) = (path for path in passed.rglob("*lora*") if path.is_file())
    assert export.parent.parent == passing.exports_folder()
    kept = services.album.keep(NOISE, PictureSettings("a dog"))
    services.album.toggle_favourite(kept)
    for path, answer in ((export, 200), (kept, 200), (kept.parent / "favourites.json", 403)):
        assert path.exists()
        got = httpx.get(f"{app_server.url}gradio_api/file={path.resolve()}")
        assert got.status_code == answer, path
    kept.unlink()


def test_room_is_made_before_anything_is_drawn(
    app_server: AppServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def make_room(album: Album, pixels: int) -> int:
        asked.append(pixels)
        if len(asked) > 1:
            raise BusyError("no room for more pictures")
        return 2

    monkeypatch.setattr(Album, "make_room", make_room)
    client = Client(app_server.url, download_files=tmp_path, verbose=False)
    wanted = {"prompt": "a dog", "adapters": {}, "steps": 1, "width": 16, "height": 16}
    drawn = client.predict(**wanted, count=2, api_name="/generate")
    assert "its 2 oldest pictures, favourites apart, made room" in drawn[1]
    assert asked == [2 * 16 * 16]
    axes = {"x_kind": "seed", "x_values": "1, 2", "y_kind": "nothing", "y_values": ""}
    with pytest.raises(AppError, match="no room for more pictures"):
        client.predict(**wanted, api_name="/generate")
    with pytest.raises(AppError, match="no room for more pictures"):
        client.predict(**wanted | axes, api_name="/compare")
