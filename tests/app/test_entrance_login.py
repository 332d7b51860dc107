"""Passwords are not guessed, and those who know theirs get in while others try."""

from __future__ import annotations

from typing import Any

import anyio
import event_loop
import pytest

from app.entrance import login
from app.entrance.login import LoginPatience, checker
from app.visitors import KEY, Visitor


class Door:
    """A form to log in whose clock moves with the waiting.

    Attributes:
        now: seconds.
        checked: how many attempts were.
        right: whether the next attempts are.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.checked = 0
        self.right = False
        self.patience = LoginPatience(self._check, self._sleep, lambda: self.now)

    def attempt(self, address: str) -> tuple[int, float]:
        """The status of one attempt, and how long it took."""
        before = self.now
        statuses: list[int] = []
        event_loop.run(self.patience, scope(address), None, collector(statuses))
        return statuses[0], self.now - before

    async def _check(self, _: Any, __: Any, send: Any) -> None:
        self.checked += 1
        await send({"type": "http.response.start", "status": 200 if self.right else 400})

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds


def scope(address: str) -> dict[str, Any]:
    visitor = Visitor("x", address, "x")
    return {"type": "http", "method": "POST", "path": "/login/", "headers": [], KEY: visitor}


def collector(statuses: list[int]) -> Any:
    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    return send


def test_waits_grow_with_the_failures_of_an_address() -> None:
    door = Door()
    waits = [door.attempt("10.0.0.1")[1] for _ in range(12)]
    assert max(waits[:3]) < 0.1
    assert waits[3:9] == [1, 2, 4, 8, 16, 32] and waits[9:] == [60, 60, 60]


def test_a_day_of_guessing_from_one_address_is_a_few_guesses() -> None:
    door = Door()
    while door.now < 86_400:
        assert door.attempt("10.0.0.1")[0] == 400
    assert door.checked < 1500


def test_others_get_in_meanwhile_and_so_does_who_remembers() -> None:
    door = Door()
    for number in range(300):
        door.attempt(f"10.0.0.{number % 60}")
    door.right = True
    status, wait = door.attempt("192.168.0.1")
    assert status == 200 and 0 < wait <= 2
    # From an attacker's address it takes longer, but nobody is locked out.
    status, wait = door.attempt("10.0.0.0")
    assert status == 200 and wait <= 60
    status, wait = door.attempt("10.0.0.0")
    assert status == 200 and wait <= 2


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_addresses_of_one_network_count_as_one(one: str, other: str, is_same: bool) -> None:
    door = Door()
    for _ in range(8):
        door.attempt(one)
    assert (door.attempt(other)[1] > 10) == is_same


def test_attempts_at_once_take_turns_and_are_few() -> None:
    async def check() -> None:
        under_way = most = 0
        statuses: list[int] = []

        async def app(_: Any, __: Any, send: Any) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await anyio.lowlevel.checkpoint()
            under_way -= 1
            await send({"type": "http.response.start", "status": 400})

        async def receive() -> Any: ...

        patience = LoginPatience(app, sleep=lambda _: anyio.lowlevel.checkpoint())
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(patience, scope("10.0.0.1"), receive, collector(statuses))
        assert most == 1
        assert sorted(statuses) == [400] * 3 + [429] * 47

    event_loop.run(check)


def test_memory_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_ADDRESSES", 10)
    door = Door()
    for number in range(30):
        door.attempt(f"{number}")
    assert len(door.patience._attempts) == len(door.patience._failures) == 10


def test_names_and_passwords_are_compared_whole() -> None:
    is_right = checker("me", "pässwörd")
    assert is_right("me", "pässwörd")
    for name, word in (
        ("me", "pässwör"),
        ("me", "pässwörd "),
        ("", "pässwörd"),
        ("ME", "pässwörd"),
        ("me", ""),
        ("pässwörd", "me"),
        ("me", "\udcff"),
    ):
        assert not is_right(name, word)
