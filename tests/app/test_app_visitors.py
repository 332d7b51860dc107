"""Visitors who come from elsewhere have things of their own, and no say in others'."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from app_server import AppServer, arrive, open_tab, wait_for_trainings, write_random_adapter
from full_disk import fill
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from app.entrance.recognition import COOKIE
from app.errors import AppError as OurError
from app.errors import BusyError, LibraryError
from app.owners import OwnedLibrary, Owners
from app.photos import CroppedPhoto
from app.settings import AppSettings, Limits
from app.training_status import Stage
from app.visitors import Visitor, acting_as, current_visitor
from svfit_diffusion.errors import StorageError
from svfit_diffusion.files.adapter import read_adapter, state_dict
from svfit_diffusion.training import Trainer, TrainingConfig

ANN, BOB = (Visitor(name, f"at {name}", name) for name in ("ann", "bob"))
SETTINGS: dict[str, Any] = {
    "prompt": "a photo of sks dog",
    "adapters": {},
    "steps": 3,
    "width": 16,
    "height": 16,
}
PHOTOS = [
    CroppedPhoto(f"{colour}.png", Image.new("RGB", (40, 40), colour))
    for colour in ("red", "orange", "brown")
]


@pytest.fixture(scope="module")
def open_house(serve: Callable[..., AppServer]) -> AppServer:
    """An app that others than this machine's user come to, by a proxy's name."""
    return serve(allowed_host=["visitors.example"])


def newcomer(server: AppServer) -> str:
    """The cookie that a new visitor gets."""
    return httpx.get(server.url).cookies[COOKIE]


def client(server: AppServer, cookie: str, folder: Path) -> Client:
    headers = {"cookie": f"{COOKIE}={cookie}"}
    return Client(server.url, headers=headers, download_files=folder, verbose=False)


@pytest.fixture
def library(open_house: AppServer) -> Iterator[OwnedLibrary]:
    library = open_house.services.library
    before = set(library.names())
    yield library
    for name in set(library.names()) - before:
        library.delete(name)


@pytest.mark.parametrize(
    ("settings", "is_for_one"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "192.168.0.7"}, False),
        ({"share": True}, False),
        ({"allowed_host": ["example.org"]}, False),
    ],
    ids=str,
)
def test_all_is_one_users_where_nobody_else_comes(
    settings: dict[str, Any], is_for_one: bool
) -> None:
    assert AppSettings(base="x", **settings).is_for_one_user is is_for_one


def test_a_cookie_is_given_once_and_opens_nothing(open_house: AppServer) -> None:
    answer = httpx.get(open_house.url)
    (cookie,) = answer.headers.get_list("set-cookie")
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    again = httpx.get(open_house.url, cookies={COOKIE: answer.cookies[COOKIE]})
    assert "set-cookie" not in again.headers
    assert newcomer(open_house) != newcomer(open_house)
    for made_up in ("house", "x", "x" * 42, "x" * 44):
        assert "set-cookie" in httpx.get(open_house.url, cookies={COOKIE: made_up}).headers


def test_an_adapter_is_its_owners_alone(
    open_house: AppServer, library: OwnedLibrary, tmp_path: Path
) -> None:
    file = write_random_adapter(tmp_path / "mine.safetensors", 7)
    with acting_as(ANN):
        assert library.add(file) == "mine"
        assert "mine" in library.names()
    with acting_as(BOB):
        assert "mine" not in library.names() and "rex" in library.names()
        for act in (library.path, library.describe, library.delete):
            with pytest.raises(LibraryError, match="no adapter named"):
                act("mine")
        with pytest.raises(LibraryError):
            library.rename("mine", "his")
        with pytest.raises(LibraryError):
            list(open_house.services.generator.run([_wanted("mine")]))
        assert library.add(file) == "mine-2"
        assert library.rename("mine-2", "his") == "his"
    with acting_as(ANN):
        assert {"his", "mine-2"} & set(library.names()) == set()
        assert list(open_house.services.generator.run([_wanted("mine")]))
        library.delete("mine")
    assert "his" in library.names(), "whoever runs the app sees all"


def _wanted(name: str) -> Any:
    from app.picture import PictureSettings

    return PictureSettings("a dog", adapters={name: 1}, steps=1, width=16, height=16)


def test_a_page_begins_with_what_is_there_for_all_and_then_has_ones_own(
    open_house: AppServer, library: OwnedLibrary, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page = visit(url=open_house.url)
    (cookie,) = (c["value"] for c in page.context.cookies() if c["name"] == COOKIE)
    owner = hashlib.sha256(cookie.encode()).hexdigest()[:32]
    with acting_as(Visitor(owner, "", owner)):
        library.add(write_random_adapter(tmp_path / "anns own.safetensors", 7))
    assert "anns own" not in httpx.get(open_house.url).text
    page.reload()
    arrive(page)
    page.locator("#generate-adapters input").click()
    page.get_by_role("option", name="anns own").wait_for()
    from app.pages.layout import build_app

    assert "rex" in repr(build_app(open_house.services).config)
    assert "anns own" not in repr(build_app(open_house.services).config), "after a restart too"
    other = visit(url=open_house.url)
    open_tab(other, "Inspect")
    other.locator("#inspect-adapter input").click()
    other.get_by_role("option", name="rex").wait_for()
    assert other.get_by_role("option", name="anns own").count() == 0


def test_what_is_there_for_everyone_no_visitor_changes(library: OwnedLibrary) -> None:
    with acting_as(ANN):
        for act in (library.delete, lambda name: library.rename(name, "other")):
            with pytest.raises(LibraryError, match="for everyone"):
                act("rex")
    assert "rex" in library.names()


def test_owners_are_known_after_a_restart(library: OwnedLibrary, tmp_path: Path) -> None:
    file = write_random_adapter(tmp_path / "lasting.safetensors", 7)
    with acting_as(ANN):
        library.add(file)
    known = Owners(library._owners._path)
    again = OwnedLibrary(library.folder, library._base, Limits(), known, "owned")
    with acting_as(BOB):
        assert "lasting" not in again.names()
    with acting_as(ANN):
        again.delete("lasting")
    assert Owners(library._owners._path).of("lasting") == "house"


@pytest.mark.parametrize("text", ["[]", "nonsense", "[" * 50_000])
def test_owners_that_cannot_be_read_are_not_forgotten(tmp_path: Path, text: str) -> None:
    (tmp_path / "owners.json").write_text(text)
    with pytest.raises(OurError, match=r"owners\.json"):
        Owners(tmp_path / "owners.json")


@pytest.mark.parametrize(("rule", "may"), [("shared", True), ("read-only", False)])
def test_a_setting_says_who_may_change_the_library(
    library: OwnedLibrary, tmp_path: Path, rule: str, may: bool
) -> None:
    file = write_random_adapter(tmp_path / "ours.safetensors", 7)
    ours = OwnedLibrary(
        tmp_path / "ours", library._base, Limits(), Owners(tmp_path / "owners.json"), rule
    )
    ours.add(file)

    def rename() -> None:
        ours.rename("ours", "theirs")

    with acting_as(BOB):
        assert ours.names() == ["ours"]
        for act in (lambda: ours.add(file, "more"), rename, lambda: ours.delete("theirs")):
            if may:
                act()
            else:
                with pytest.raises(LibraryError):
                    act()
    assert ours.names() == (["more"] if may else ["ours"])


@pytest.fixture
def training_of_ann(
    open_house: AppServer, library: OwnedLibrary, monkeypatch: pytest.MonkeyPatch
) -> Iterator[threading.Event]:
    """Ann's training, in which the second step waits for the event."""
    reached, released = threading.Event(), threading.Event()
    steps = Trainer.steps

    def held(trainer: Trainer) -> Iterator[Any]:
        for record in steps(trainer):
            yield record
            reached.set()
            assert released.wait(120)

    monkeypatch.setattr(Trainer, "steps", held)
    jobs = open_house.services.jobs
    with acting_as(ANN):
        jobs.start("secret dog", PHOTOS, _config())
    assert reached.wait(120)
    yield released
    released.set()
    jobs.close()


def _config() -> TrainingConfig:
    return TrainingConfig(
        instance_prompt="a photo of my secret dog",
        train_text_encoder=False,
        train_batch_size=1,
        max_train_steps=3,
        lr_warmup_steps=0,
        num_inference_steps=1,
        num_validation_images=1,
    )


def test_others_see_nothing_of_a_training_and_do_not_stop_it(
    open_house: AppServer, training_of_ann: threading.Event
) -> None:
    jobs = open_house.services.jobs
    run = jobs.status().run
    with acting_as(BOB):
        status = jobs.status()
        assert status.stage is Stage.ELSEWHERE
        assert not (status.photos or status.samples or status.losses or status.adapter_name)
        assert "secret" not in repr(status) and "Another visitor" in status.message
        assert jobs.status(run) is None
        assert jobs.photos(run) == ()
        with pytest.raises(OurError, match="Nothing was learned"):
            jobs.keep_step(run, 3)
        jobs.stop()
        jobs.cancel(run)
    with acting_as(ANN):
        own = jobs.status()
        assert (own.stage, own.adapter_name, len(own.photos)) == (Stage.TRAINING, "secret dog", 3)
    training_of_ann.set()
    wait_for_trainings()
    with acting_as(ANN):
        own = jobs.status()
        assert (own.stage, own.step) == (Stage.FINISHED, 3), "nobody has stopped it"
        assert "secret dog" in open_house.services.library.names()
    with acting_as(BOB):
        assert jobs.status().message == "Yours can begin." and "secret" not in repr(jobs.status())
        assert "secret dog" not in open_house.services.library.names()
        jobs.start("his", PHOTOS, _config())
        wait_for_trainings()
        assert jobs.status().adapter_name == "his"
    with acting_as(ANN):
        assert jobs.status().adapter_name == "secret dog", "one's own last stays to be seen"


def test_the_queue_is_everyones_and_each_sees_their_own(
    open_house: AppServer, training_of_ann: threading.Event
) -> None:
    jobs = open_house.services.jobs
    with acting_as(BOB):
        first, second = (jobs.start(name, PHOTOS, _config()) for name in ("his", "hers"))
        with pytest.raises(BusyError, match="2 trainings of yours"):
            jobs.start("theirs", PHOTOS, _config())
    with acting_as(ANN):
        third = jobs.start("another", PHOTOS, _config())
        assert [status.run for status in jobs.waiting()] == [third]
        jobs.move_up(third)  # past another visitor's, which nobody but the house may
        jobs.cancel(first)
    assert [status.run for status in jobs.waiting()] == [first, second, third]
    with acting_as(BOB):
        jobs.move_up(second)
        assert [status.run for status in jobs.waiting()] == [second, first]
    jobs.move_up(third)
    assert [status.run for status in jobs.waiting()] == [second, third, first]
    for run in (first, second, third):
        jobs.cancel(run)
    training_of_ann.set()
    wait_for_trainings()
    assert open_house.services.library.names().count("secret dog") == 1


def test_only_who_deleted_an_adapter_brings_it_back(library: OwnedLibrary, tmp_path: Path) -> None:
    file = write_random_adapter(tmp_path / "anns.safetensors", 7)
    with acting_as(ANN):
        library.add(file)
        library.delete("anns")
    with acting_as(BOB), pytest.raises(LibraryError, match="not there any more"):
        library.restore("anns")
    with acting_as(ANN):
        assert library.restore("anns") == "anns"
    with acting_as(BOB):
        assert "anns" not in library.names(), "it is hers again"


def test_what_one_deletes_replaces_nothing_that_another_has_deleted(
    library: OwnedLibrary, tmp_path: Path
) -> None:
    files = {
        visitor: write_random_adapter(tmp_path / visitor.id / "pet.safetensors", seed)
        for seed, visitor in enumerate((ANN, BOB))
    }
    for visitor, file in files.items():
        with acting_as(visitor):
            assert library.add(file) == "pet"
            library.delete("pet")
    shifts = {}
    for visitor in (BOB, ANN):
        with acting_as(visitor):
            name = library.restore("pet")
            shifts[visitor] = state_dict(library.describe(name).adapter)
            library.delete(name)
    for visitor, file in files.items():
        expected = state_dict(read_adapter(file))
        assert all(torch.equal(expected[key], shifts[visitor][key]) for key in expected)


def test_a_renamed_adapter_is_nobody_elses_at_any_time(
    library: OwnedLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_random_adapter(tmp_path / "plain.safetensors", 7)
    rename = Path.rename
    seen: list[str] = []

    def looking(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        with acting_as(BOB):
            seen.extend(library.names())
        return renamed

    with acting_as(ANN):
        library.add(file, "anns")
        monkeypatch.setattr(Path, "rename", looking)
        assert library.rename("anns", "hers") == "hers"
    assert seen and not {"anns", "hers"} & set(seen)
    assert library._owners.of("hers") == "ann" and library._owners.of("anns") == "house"


def test_on_a_full_disk_nothing_becomes_everyones_and_things_can_be_deleted(
    library: OwnedLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_random_adapter(tmp_path / "plain.safetensors", 7)
    with acting_as(ANN):
        for name in ("anns", "other"):
            library.add(file, name)
        fill(monkeypatch, library._owners._path.parent)
        for act in (lambda: library.rename("anns", "hers"), lambda: library.add(file, "more")):
            with pytest.raises(StorageError):
                act()
        assert {"anns", "other"} < set(library.names())
        library.delete("other")
        assert not {"hers", "more", "other"} & set(library.names())
    with acting_as(BOB):
        assert not {"anns", "hers", "more"} & set(library.names())
    monkeypatch.undo()
    known = Owners(library._owners._path)
    assert (known.of("anns"), known.of("hers"), known.of("more")) == ("ann", "house", "house")
    with acting_as(BOB):
        assert library.add(file, "other") == "other"
    assert Owners(library._owners._path).of("other") == "bob"


def test_whoever_runs_the_app_stops_any_training(
    open_house: AppServer, training_of_ann: threading.Event
) -> None:
    jobs = open_house.services.jobs
    assert jobs.status().adapter_name == "secret dog"
    jobs.stop()
    training_of_ann.set()
    wait_for_trainings()
    with acting_as(ANN):
        assert jobs.status().stage is Stage.STOPPED


def test_pages_act_in_the_name_of_their_visitor(
    open_house: AppServer, library: OwnedLibrary, tmp_path: Path
) -> None:
    ann, bob = newcomer(open_house), newcomer(open_house)
    seen: list[Visitor] = []
    run = type(open_house.services.generator).run

    def noting(self: Any, wanted: Any) -> Any:
        seen.append(current_visitor())
        return run(self, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(open_house.services.generator), "run", noting)
        for cookie in (ann, bob, ann):
            client(open_house, cookie, tmp_path).predict(**SETTINGS, api_name="/generate")
    first, second, third = seen
    assert first.id == third.id != second.id
    assert {visitor.address for visitor in seen} == {"127.0.0.1"}
    assert ann not in repr(first), "what is kept of a cookie opens nothing"
    file = write_random_adapter(tmp_path / "anns.safetensors", 7)
    with acting_as(first):
        library.add(file)
    drawn = client(open_house, ann, tmp_path).predict(
        **SETTINGS | {"adapters": {"anns": 1}}, api_name="/generate"
    )
    assert drawn
    with pytest.raises(AppError, match="no adapter named"):
        client(open_house, bob, tmp_path).predict(
            **SETTINGS | {"adapters": {"anns": 1}}, api_name="/generate"
        )


def test_one_client_does_not_fill_the_line(open_house: AppServer, tmp_path: Path) -> None:
    may_draw = threading.Event()
    open_house.services.generator._thread.submit(may_draw.wait, 60)
    greedy, modest = (client(open_house, newcomer(open_house), tmp_path) for _ in range(2))
    jobs = [greedy.submit(**SETTINGS, api_name="/generate") for _ in range(9)]
    refused = [job for job in jobs if _is_refused(job)]
    assert len(refused) == 9 - open_house.services.limits.max_places
    assert "as many as one visitor may" in str(refused[0].exception())
    other = modest.submit(**SETTINGS, api_name="/generate")
    assert not _is_refused(other)
    may_draw.set()
    assert other.result(60)


def _is_refused(job: Any) -> bool:
    """Whether a job has been refused rather than taken in."""
    while not job.outputs():
        try:
            if job.exception(timeout=0.1) is not None:
                return True
        except TimeoutError:
            continue
    return False


def test_jobs_that_nobody_listens_to_are_dropped(
    open_house: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import visits

    monkeypatch.setattr(visits, "_ABSENCE", 0.5)
    services = open_house.services
    ended = threading.Event()
    leave = visits.Visit._leave_if_alone

    def noting(visit: Any) -> None:
        try:
            leave(visit)
        except OurError:
            ended.set()
            raise

    monkeypatch.setattr(visits.Visit, "_leave_if_alone", noting)
    values = ["a dog", "", {}, 100, 1, 16, 16, "The base model's own", 0, False, 8]
    answer = httpx.post(f"{open_house.url}gradio_api/call/generate", json={"data": values})
    assert answer.status_code == 200, answer.text
    assert ended.wait(60)
    while services.generator._thread._work_queue.qsize():
        threading.Event().wait(0.05)
    assert not list(services.settings.pictures.rglob("*seed0-*"))
