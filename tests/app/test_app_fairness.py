"""Shares of what is there for all, and the queue of trainings that goes by them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import wait_for_trainings
from PIL import Image

from app.base_model import BaseModel
from app.errors import BusyError
from app.fairness import of_address, superfluous
from app.library import AdapterLibrary
from app.owned_trainings import OwnedTrainings
from app.photos import CroppedPhoto
from app.settings import Limits
from app.training_job import TrainingJob
from app.training_status import Stage
from app.visitors import HOUSE, Visitor, acting_as
from svfit_diffusion.training import TrainingConfig

ANN, BOB, EVE = (Visitor(name, f"at {name}", name) for name in ("ann", "bob", "eve"))
PHOTOS = [CroppedPhoto(f"{n}.png", Image.new("RGB", (32, 32))) for n in range(3)]


def test_an_address_has_a_household_s_share_and_leaves_one_visitor_s() -> None:
    assert [of_address(5, most) for most in (100, 20, 8, 5, 2)] == [20, 15, 5, 5, 5]


def test_the_first_of_whoever_has_most_goes_but_never_the_last() -> None:
    neighbour = Visitor("neighbour", BOB.address, "neighbour")
    assert superfluous({1: ANN, 2: BOB, 3: BOB, 4: BOB}) == 2
    assert superfluous({1: ANN, 2: BOB, 3: ANN, 4: BOB}) == 1
    assert superfluous({1: ANN, 2: neighbour, 3: BOB, 4: BOB, 5: ANN}) == 3
    assert superfluous({1: ANN, 2: ANN, 3: None, 4: BOB}) == 3
    assert superfluous({1: ANN, 2: None}) == 1
    assert superfluous({1: ANN, 2: BOB}) == 1


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


@pytest.fixture
def may_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Trainings learn nothing, and end when they are let."""
    may = threading.Semaphore(0)

    def run(job: TrainingJob) -> None:
        assert may.acquire(timeout=60)
        job.leave("Over.")

    monkeypatch.setattr(TrainingJob, "run", run)
    yield may
    may.release(1000)
    wait_for_trainings()


@pytest.fixture
def jobs(tmp_path: Path, base: BaseModel, may_end: threading.Semaphore) -> OwnedTrainings:
    library = AdapterLibrary(tmp_path / "adapters", base, 2**20)
    return OwnedTrainings(base, library, tmp_path / "trainings", Limits())


def start(jobs: OwnedTrainings, visitor: Visitor, name: str = "rex") -> str:
    with acting_as(visitor):
        return jobs.start(name, PHOTOS, TrainingConfig(instance_prompt="a photo of sks dog"))


def test_everyones_first_training_comes_before_anyones_second(jobs: OwnedTrainings) -> None:
    for visitor, name in [
        *((EVE, "runs"), (EVE, "eve 2"), (EVE, "eve 3")),
        *((ANN, "ann 1"), (ANN, "ann 2"), (BOB, "bob 1"), (BOB, "bob 2")),
    ]:
        start(jobs, visitor, name)
    order = [status.adapter_name for status in jobs.waiting()]
    assert order == ["ann 1", "bob 1", "eve 2", "ann 2", "bob 2", "eve 3"]


def test_cookies_of_ones_own_making_bring_no_more_trainings(jobs: OwnedTrainings) -> None:
    crowd = [Visitor(f"crowd {n}", EVE.address, f"crowd {n}") for n in range(9)]
    for visitor in crowd[:7]:  # the first of them runs
        start(jobs, visitor)
    with pytest.raises(BusyError, match="from where you are"):
        start(jobs, crowd[7])
    start(jobs, ANN)
    start(jobs, Visitor(HOUSE, EVE.address, HOUSE))


def test_many_trainings_of_one_push_no_others_out_of_sight(
    jobs: OwnedTrainings, may_end: threading.Semaphore
) -> None:
    may_end.release(100)
    anns = start(jobs, ANN)
    wait_for_trainings()
    for _ in range(25):
        start(jobs, EVE)
        wait_for_trainings()
    with acting_as(ANN):
        status = jobs.status(anns)
        assert status and status.stage is Stage.STOPPED
        assert jobs.status() == status and jobs.photos(anns) == tuple(PHOTOS)
    assert len(jobs._over) == 20


def test_many_that_were_taken_off_push_no_others_out_of_sight(jobs: OwnedTrainings) -> None:
    start(jobs, BOB)
    anns = start(jobs, ANN)
    with acting_as(ANN):
        jobs.cancel(anns)
    for _ in range(25):
        eves = start(jobs, EVE)
        with acting_as(EVE):
            jobs.cancel(eves)
    with acting_as(ANN):
        assert jobs.status(anns) is not None
    assert len(jobs._cancelled) == 20
