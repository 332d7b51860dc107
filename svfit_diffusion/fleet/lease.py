"""One command at a time in a fleet's store."""

from __future__ import annotations

import json
import platform
import time
import uuid
from types import TracebackType
from typing import Any

import psutil

from svfit_diffusion.errors import StateError
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.fleet.store import Store

_NOTE = ".fleet/running.json"
_RENEWED = 20.0  # seconds between signs of life
_EXPIRED = 90.0  # seconds without one after which a command elsewhere has died


class Lease:
    """While within, other commands are kept out of a store.

        with Lease(store) as lease:
            ...
            lease.renew()

    A note in the store says who is there. A process of this machine is asked for; of another
    machine's the last sign of life counts, by clocks that are not far apart. Buckets cannot refuse
    the second of two that come in the same second: the first then finds out at its next renewal.

    Args:
        store: which.

    Raises:
        StateError: another command works there.
        StorageError: the store cannot be reached or written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._renewed = 0.0
        process = psutil.Process()
        self._own = {
            "token": uuid.uuid4().hex,
            "host": platform.node(),
            "pid": process.pid,
            "started": process.create_time(),
        }

    def __enter__(self) -> Lease:
        found = self._read()
        if found is not None and (left := _seconds_left(found)) > 0:
            raise StateError(
                f"another command trains into {self._store}: process {found.get('pid')} on "
                f"{found.get('host')!r}; wait for it, or stop it, or give another --output (should "
                f"it have died, this one works in {left:.0f} seconds)"
            )
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_held():
            self._store.remove(_NOTE)

    def renew(self) -> None:
        """Give a sign of life, if the last is a while ago.

        Raises:
            StateError: another command has taken this one for dead.
            StorageError: the store cannot be reached or written.
        """
        if time.monotonic() - self._renewed < _RENEWED:
            return
        if not self._is_held():
            raise StateError(
                f"another command has begun to train into {self._store}, as this one gave no sign "
                f"of life; that one goes on with all of it"
            )
        self._write()

    def _is_held(self) -> bool:
        found = self._read()
        return found is not None and found.get("token") == self._own["token"]

    def _write(self) -> None:
        note = self._own | {"seen": time.time()}
        self._store.write(_NOTE, json.dumps(note).encode() + b"\n")
        self._renewed = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        """The note that is there; None if there is none, or one that nobody has written."""
        if not self._store.exists(_NOTE):
            return None
        try:
            found = parse_json(self._store.read(_NOTE).decode())
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def _seconds_left(note: dict[str, Any]) -> float:
    """In how many seconds the command of a note counts as dead; 0 if it does."""
    if note.get("host") == platform.node():
        return _EXPIRED if _is_alive(note.get("pid"), note.get("started")) else 0.0
    seen = note.get("seen")
    if not isinstance(seen, (int, float)):
        return 0.0
    return max(0.0, _EXPIRED - abs(time.time() - seen))


def _is_alive(pid: object, started: object) -> bool:
    """Whether a process of this machine is there, not another that got its number since."""
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, OverflowError):
        return False
