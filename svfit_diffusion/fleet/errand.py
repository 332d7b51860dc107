"""A subject on a worker: where it works, what the store has of it, what it has taken."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import DataError, StorageError
from svfit_diffusion.files.bucket import Bucket, is_address
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.fleet.mirror import Mirror
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject

logger = logging.getLogger(__name__)

_COST_NAME = "fleet_cost.json"


class Errand:
    """A subject that a worker has been given, with what the store has of it.

    Args:
        subject: which.
        store: where it is kept.
        scratch: a folder of the worker's, for folders of its own.

    Raises:
        StorageError: the store cannot be reached.
        ConfigError, DataError: its photos are at no such address, or not to be had.

    Attributes:
        config: its settings here; it goes on from the last checkpoint in the store.
        seconds: of a worker that it has taken, as far as is known.
        begun: how often it was.
    """

    def __init__(self, subject: FleetSubject, store: Store, scratch: Path) -> None:
        self._subject = subject
        self._store = store
        folder = scratch / "runs" / subject.name
        self._mirror = Mirror(store, subject.name, folder)
        self._mirror.pull()
        self.seconds, begun = _read_cost(folder)
        self.begun = begun + 1
        photos = subject.config.instance_data_dir
        if is_address(photos):
            photos = str(_fetch(photos, scratch / "photos" / subject.name))
        self.config = dataclasses.replace(
            subject.config,
            instance_data_dir=photos,
            output_dir=str(folder),
            resume_from_checkpoint="latest",
        )

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        return self._mirror.folder

    def has_checkpoint(self, step: int) -> bool:
        """Whether it was kept after a step."""
        return (self.folder / f"checkpoint-{step}").is_dir()

    def keep(self) -> None:
        """Bring to the store what is new; where it cannot be reached, the next time does."""
        try:
            self._push()
        except StorageError as error:
            logger.warning("%s goes on without a copy: %s", self._subject.name, error)

    def leave(self) -> None:
        """Work on it no more; what was learned of it is kept."""
        self.keep()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, steps: int) -> None:
        """Bring all of it to the store, then note there that it is done.

        Args:
            steps: that it has.

        Raises:
            StorageError: the store cannot be reached.
        """
        self._push()
        record: dict[str, Any] = {
            "name": self._subject.name,
            "steps": steps,
            "worker_seconds": round(self.seconds, 3),
            "steps_per_second": round(steps / self.seconds, 4) if self.seconds else None,
            "begun": self.begun,
            "finished": round(time.time(), 3),
            "settings": self._subject.settings,
        }
        self._store.finish(self._subject.name, record)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _push(self) -> None:
        if not any(self.folder.iterdir()):
            return  # nothing was begun
        text = json.dumps({"worker_seconds": self.seconds, "begun": self.begun})
        (self.folder / _COST_NAME).write_text(text)
        self._mirror.push()


def share_out(seconds: float, errands: Collection[Errand]) -> None:
    """Add a worker's time to those that it was spent on, in equal parts."""
    for errand in errands:
        errand.seconds += seconds / len(errands)


def _read_cost(folder: Path) -> tuple[float, int]:
    """What a subject has taken before, and how often it was begun; nothing where nobody knows."""
    try:
        found = parse_json((folder / _COST_NAME).read_text())
        return float(found["worker_seconds"]), int(found["begun"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, 0


def _fetch(address: str, folder: Path) -> Path:
    """Copy photos from a bucket; `DataError` if they are not to be had."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Bucket(address)
    try:
        for name in source.files():
            source.get(name, folder / name)
    except StorageError as error:
        raise DataError(f"no photos: {error}") from error
    return folder
