"""The line of those who wait for pictures: nobody takes all places, and turns go round."""

from __future__ import annotations

import pytest

from app import visits
from app.errors import BusyError
from app.line import Line
from app.picture import PictureSettings
from app.settings import Limits
from app.visitors import HOUSE, Listeners, Visitor
from app.visits import Portion, Waiting, in_portions

LIMITS = Limits(max_images=2, max_places=3, max_waiting=10)


def visitor(name: str, address: str = "") -> Visitor:
    return Visitor(name, address or f"at {name}", name)


def asked(who: Visitor, pictures: int = 1, steps: int = 5) -> list[Portion]:
    wanted = [
        PictureSettings(f"{who.id} {seed}", steps=steps, seed=seed) for seed in range(pictures)
    ]
    return in_portions(who, wanted, LIMITS.max_images)


def drawn(line: Line) -> list[str]:
    """Whose batch comes next, until nobody waits; batches of different steps are not shared."""
    order = []
    while taken := line.take():
        order.append("+".join(portion.visit.visitor.id for portion in taken))
    return order


def test_a_visitor_has_a_few_places_and_others_the_rest() -> None:
    line = Line(LIMITS)
    for _ in range(LIMITS.max_places):
        line.join(asked(visitor("greedy")))
    with pytest.raises(BusyError, match="3 requests"):
        line.join(asked(visitor("greedy")))
    line.join(asked(visitor("modest")))
    assert len(line) == 4


def test_cookies_of_ones_own_making_bring_no_more_places() -> None:
    line = Line(LIMITS)
    for number in range(7):
        line.join(asked(visitor(f"cookie {number}", "10.0.0.1")))
    with pytest.raises(BusyError, match="from where you are"):
        line.join(asked(visitor("cookie 7", "10.0.0.1")))
    for _ in range(3):
        line.join(asked(visitor("modest", "10.0.0.2")))
    with pytest.raises(BusyError, match="Everyone"):
        line.join(asked(visitor("late", "10.0.0.3")))


def test_a_place_is_free_again_once_a_visit_is_over() -> None:
    line = Line(LIMITS)
    kept = [asked(visitor("one")) for _ in range(3)]
    for portions in kept:
        line.join(portions)
    kept[0][0].visit.over.set()
    line.join(asked(visitor("one")))
    with pytest.raises(BusyError):
        line.join(asked(visitor("one")))


def test_whoever_runs_the_app_is_not_bounded() -> None:
    line = Line(LIMITS)
    for _ in range(30):
        line.join(asked(visitor(HOUSE)))
    assert len(line) == 30


def test_turns_go_round_however_much_one_asks_for() -> None:
    line = Line(LIMITS)
    for steps in (5, 6, 7):
        line.join(asked(visitor("greedy"), 6, steps))
    (first,) = line.take()
    assert first.visit.visitor.id == "greedy"
    line.join(asked(visitor("modest"), 4, 8))
    line.join(asked(visitor("late"), 2, 9))
    order = drawn(line)
    assert order[:5] == ["modest", "late", "greedy", "modest", "greedy"]
    assert order.count("greedy") == 8


def test_company_in_a_batch_is_chosen_in_turn_too() -> None:
    line = Line(LIMITS)
    for _ in range(3):
        line.join(asked(visitor("greedy")))
    line.join(asked(visitor("modest")))
    assert drawn(line) == ["greedy+modest", "greedy+greedy"]


def test_what_nobody_waits_for_is_not_drawn() -> None:
    line = Line(LIMITS)
    left, stayed = asked(visitor("left"), 8), asked(visitor("stayed"), 1, 9)
    line.join(left)
    line.join(stayed)
    left[0].visit.over.set()
    assert drawn(line) == ["stayed"]


def test_a_visit_that_nobody_listens_to_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(visits, "_PATIENCE", 0)
    monkeypatch.setattr(visits.time, "monotonic", lambda: now)
    listeners = Listeners()
    absent = Visitor("absent", "", "", listeners, ("session", "event"))
    (portion, *_) = asked(absent)
    stream = portion.visit.stream()
    with listeners.one_more("session"):
        for now in (1.0, 50.0):  # noqa: B007  (the clock reads it)
            assert isinstance(next(stream), Waiting)
    now = 55.0
    assert isinstance(next(stream), Waiting), "a line that breaks comes back"
    with listeners.one_more("event"):
        now = 61.0
        assert isinstance(next(stream), Waiting)
    now = 72.0
    with pytest.raises(BusyError, match="Nobody listens"):
        next(stream)
    assert portion.visit.over.is_set()
