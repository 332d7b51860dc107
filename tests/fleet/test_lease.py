"""A store has one command at a time, and one that died keeps nobody out for long."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from svfit_diffusion.errors import StateError
from svfit_diffusion.fleet import lease as leases
from svfit_diffusion.fleet.lease import Lease
from svfit_diffusion.fleet.store import Store

NOTE = ".fleet/running.json"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = {"folder": str(tmp_path / "out"), "memory": f"memory://{uuid.uuid4()}/out"}
    return Store(place[request.param])


def leave(store: Store, **note: Any) -> None:
    """The note of some other command."""
    store.write(NOTE, json.dumps({"token": "other", "pid": 1, "started": 0.0} | note).encode())


def test_a_second_command_is_kept_out_until_the_first_ends(store: Store) -> None:
    with Lease(store):
        with pytest.raises(StateError, match=r"another command trains into .*out: process \d+ on"):
            Lease(store).__enter__()
        assert store.exists(NOTE)
    assert not store.exists(NOTE)
    with Lease(store):
        pass


def test_one_that_was_killed_here_keeps_nobody_out(store: Store) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave(store, host=platform.node(), pid=ended.pid, seen=time.time())
    with Lease(store):
        pass
    # Its number may have gone to another process, such as this one.
    own = Lease(store)._own
    leave(store, host=platform.node(), pid=own["pid"], started=1.0, seen=time.time())
    with Lease(store):
        pass


@pytest.mark.parametrize(("age", "is_free"), [(0, False), (80, False), (-80, False), (100, True)])
def test_one_elsewhere_counts_as_dead_without_a_sign_of_life(
    store: Store, age: float, is_free: bool
) -> None:
    leave(store, host="elsewhere", seen=time.time() - age)
    if is_free:
        with Lease(store):
            pass
        return
    with pytest.raises(StateError, match=r"on 'elsewhere'; wait .* this one works in \d+ seconds"):
        Lease(store).__enter__()
    assert json.loads(store.read(NOTE))["token"] == "other"


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[]", b"\xff", b"{}", b'{"seen": "now"}', b'{"host": "x", "seen": true}']
)
def test_a_damaged_note_keeps_nobody_out(store: Store, note: bytes) -> None:
    store.write(NOTE, note)
    with Lease(store):
        pass


def test_signs_of_life_are_given_and_a_loss_is_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(store) as lease:
        first = store.read(NOTE)
        lease.renew()
        assert store.read(NOTE) == first  # not yet
        monkeypatch.setattr(leases, "_RENEWED", 0.0)
        lease.renew()
        assert json.loads(store.read(NOTE))["seen"] > json.loads(first)["seen"]
        leave(store, host="elsewhere", seen=time.time())
        with pytest.raises(StateError, match="another command has begun to train into"):
            lease.renew()
    assert json.loads(store.read(NOTE))["token"] == "other"  # which is not ours to remove
