"""Who gets which subjects, and what becomes of them: by workers that only pretend."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from svfit_diffusion.cli.fleet_table import end, line, table
from svfit_diffusion.errors import ConfigError, PackageError, StateError
from svfit_diffusion.fleet.cluster import places
from svfit_diffusion.fleet.crew import Crew, Outcome, Place
from svfit_diffusion.fleet.driver import Died, Failed, Finished, Fleet, Looked
from svfit_diffusion.fleet.lease import Lease
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.store import COSTS_NAME, Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.fleet.worker import Seen
from svfit_diffusion.training.config import TrainingConfig

RECORD = {"steps": 3, "worker_seconds": 1.5, "settings": {}}


class Pretending:
    """A crew whose packs end at once, as they are told to.

    Args:
        count: of workers.
        ends: what becomes of a pack.
    """

    def __init__(self, count: int, ends: Callable[[list[FleetSubject]], Outcome]) -> None:
        self.places = [Place(number, None, None, Seen(number, "here")) for number in range(count)]
        self.given: list[str] = []
        self.stopped = 0
        self._ends = ends

    @property
    def is_busy(self) -> bool:
        return any(place.pack for place in self.places)

    @property
    def idle(self) -> list[Place]:
        return [place for place in self.places if not place.pack]

    def give(self, place: Place, pack: list[FleetSubject]) -> None:
        place.pack = pack
        self.given.append("".join(subject.name for subject in pack))

    def stop(self) -> None:
        self.stopped += 1

    def look(self) -> Iterator[tuple[Place, Seen | Outcome]]:
        for place in self.places:
            if place.seen:
                yield place, place.seen
            if place.pack:
                pack, place.pack = place.pack, []
                yield place, self._ends(pack)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def fleet(tmp_path: Path, store: Store) -> Callable[..., Fleet]:
    """Makes a fleet of subjects by one letter each."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "0.png")
    config = TrainingConfig("base", str(tmp_path / "photos"))

    def make(names: str, **settings: Any) -> Fleet:
        asked = FleetSettings(output=str(tmp_path / "out"), **{"subjects_per_pass": 2} | settings)
        return Fleet([FleetSubject(name, config) for name in names], asked)

    return make


def worked(fleet: Fleet, crew: Any) -> list[Any]:
    """What happens in a fleet that such a crew works for."""
    with Lease(fleet.store) as lease:
        return list(fleet.work(crew, lease))


def test_all_are_done_and_none_twice(fleet: Callable[..., Fleet], store: Store) -> None:
    def ends(pack: list[FleetSubject]) -> Outcome:
        for subject in pack:
            if subject.name != "c":
                store.finish(subject.name, {"name": subject.name, **RECORD})
        return Outcome(pack, {"c": "no"} if "c" in [s.name for s in pack] else {})

    first = fleet("abcde")
    crew = Pretending(2, ends)
    news = worked(first, crew)
    assert crew.given == ["ab", "cd", "e"]
    assert [n.name for n in news if isinstance(n, Finished)] == list("abde")
    assert [(n.name, n.reason) for n in news if isinstance(n, Failed)] == [("c", "no")]
    assert end(first).startswith("4 of 5 subjects are done, in 6 s of workers: ")
    again = fleet("abcdef")
    crew = Pretending(1, ends)
    worked(again, crew)
    assert crew.given == ["cf"]


def test_deaths_are_made_good_until_a_subject_is_given_up(
    fleet: Callable[..., Fleet], store: Store
) -> None:
    def ends(pack: list[FleetSubject]) -> Outcome:
        """The worker dies of b, after a is done."""
        names = [subject.name for subject in pack]
        for name in names:
            if name == "b":
                return Outcome(pack, death="killed")
            store.finish(name, {"name": name, **RECORD})
        return Outcome(pack)

    some = fleet("abcd", subjects_per_pass=3, retries=2)
    crew = Pretending(1, ends)
    news = worked(some, crew)
    # c, which had bad luck twice, is not lost for it.
    assert crew.given == ["abc", "bcd", "b", "c", "d"]
    assert [n.names for n in news if isinstance(n, Died)] == [["b", "c"], ["b", "c", "d"], ["b"]]
    assert [n.name for n in news if isinstance(n, Finished)] == ["a", "c", "d"]
    (failed,) = (n for n in news if isinstance(n, Failed))
    assert failed.reason == "3 workers ended while they trained it, the last: killed"


def test_stopped_it_gives_out_nothing_more(fleet: Callable[..., Fleet]) -> None:
    some = fleet("abcd")

    def ends(pack: list[FleetSubject]) -> Outcome:
        return Outcome(pack)

    crew = Pretending(2, ends)
    crew.give(crew.places[0], some.backlog.take("", 2))
    some.interrupts.noted = True
    assert not [news for news in worked(some, crew) if not isinstance(news, Looked)]
    assert crew.given == ["ab"]
    assert crew.stopped == 1
    assert end(some) == "Stopped, 0 of 4 subjects are done; the same command goes on"


def test_lines_and_table(fleet: Callable[..., Fleet]) -> None:
    some = fleet("ab")
    assert line(Finished("a", RECORD), "1 of 2") == "a is done (1 of 2): 3 steps, 1.5 s of a worker"
    assert line(Died(1, ["a", "b"], "killed"), "") == "Worker 1 has ended (killed); a, b wait again"
    assert line(Died(0, [], "killed"), "") == "Worker 0 has ended (killed)"
    steps = {name: (number, 9) for number, name in enumerate(["a[b]", *"bcdef"])}
    shown = table(some, {1: Seen(7, "here", steps), 0: Seen(8, "there")})
    assert shown.title == "0 of 2 done, 2 waiting, 0 failed"
    cells = [list(column.cells) for column in shown.columns]
    assert cells[1] == ["there:8", "here:7"]
    assert [str(cell) for cell in cells[2]] == ["–", "a[b] 0/9, b 1/9, c 2/9, d 3/9, 2 more"]


def test_places_are_where_there_is_room() -> None:
    assert places([{"CPU": 8}, {"CPU": 3}], 2) == (5, 0)
    assert places([{"CPU": 8, "GPU": 2}, {"CPU": 64}, {"CPU": 1, "GPU": 1}], 2) == (2, 1)
    with pytest.raises(ConfigError, match=r"4 CPU cores \(the largest has 2\): give fewer"):
        places([{"CPU": 2.0}, {}], 4)


def test_a_store_that_cannot_be_written_is_found_out_before_any_work(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    (tmp_path / "out" / COSTS_NAME).mkdir(parents=True)
    with pytest.raises(OSError, match=f"cannot write .*{COSTS_NAME}"):
        fleet("a")


# What is not there


def test_a_cluster_or_ray_that_is_not_there_is_one_sentence(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster at '127.*refused; `ray start"):
        list(fleet("a", address="127.0.0.1:1").news())
    with pytest.raises(ConfigError, match="no Ray cluster at 'nonsense': Invalid address"):
        list(fleet("a", address="nonsense").news())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PackageError, match=r"pip install 'svfit-diffusion\[fleet\]'"):
        list(fleet("a").news())


class FakeRay:
    """As much of Ray as a crew asks of it, on a machine of two cores whose workers all die."""

    class exceptions:
        RayError = RuntimeError

    def __init__(self) -> None:
        self.hired = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": {"CPU": 2.0}, "Alive": True}, {"Resources": {}, "Alive": False}]

    def remote(self, _: type) -> FakeRay:
        self.options = lambda **_: SimpleNamespace(remote=self._hire)
        return self

    def _hire(self, *_: Any) -> Any:
        self.hired += 1
        return SimpleNamespace(seen=SimpleNamespace(remote=object))

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, _: Any) -> Any:
        raise RuntimeError("\n  no such folder\nand more")

    def kill(self, _: Any) -> None: ...


def test_workers_that_end_as_they_begin_are_not_hired_for_ever() -> None:
    ray = FakeRay()
    crew = Crew(ray, "out", FleetSettings("out", cpus_per_worker=1))
    assert len(crew.places) == 2
    deaths: list[Any] = []
    with pytest.raises(StateError, match="workers end as they begin: RuntimeError: no such folder"):
        for _ in range(10):
            for _, outcome in crew.look():
                deaths.append(outcome.death)
    assert deaths == ["RuntimeError: no such folder"] * 3
    assert ray.hired == 2 + 4
    with pytest.raises(ConfigError, match="has room for 2 workers of 1 CPU cores and 0 GPUs each"):
        Crew(ray, "out", FleetSettings("out", cpus_per_worker=1, workers=3))


class Hanging(FakeRay):
    """Its workers answer, and make no step after the second."""

    steps = 0

    def _hire(self, *_: Any) -> Any:
        self.hired += 1
        method = SimpleNamespace(remote=lambda *_: "seen")
        return SimpleNamespace(seen=method, train=SimpleNamespace(remote=lambda _: "result"))

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [reference for reference in references if reference == "seen"], references

    def get(self, _: Any) -> Any:
        self.steps = min(self.steps + 1, 2)
        return Seen(7, "here", {"a": (self.steps, 9)})


def test_a_worker_that_hangs_is_replaced(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    ray = Hanging()
    crew = Crew(ray, "out", FleetSettings("out", workers=1, hang_timeout=60))
    (place,) = crew.places
    list(crew.look())
    pack = fleet("a").backlog.take("", 1)
    crew.give(place, pack)
    found = []
    for clock.now in (50.0, 100.0, 110.0):  # the step at 50 is the last
        found += [one for _, one in crew.look() if isinstance(one, Outcome)]
    assert not found
    clock.now = 111.0
    found += [one for _, one in crew.look() if isinstance(one, Outcome)]
    assert found == [Outcome(pack, death="no step in 60 seconds")]
    assert ray.hired == 2
    assert crew.idle == []  # until the new one is up
