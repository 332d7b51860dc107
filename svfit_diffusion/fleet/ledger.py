"""Which subjects of a fleet are done, which cannot be trained, and which are to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import ConfigError, SVFitError, clipped
from svfit_diffusion.files.bucket import Bucket, is_address
from svfit_diffusion.fleet.store import COSTS_NAME, Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.training.photos import photo_files


class Ledger:
    """What has become of each subject of a fleet, as the store says it, and why some failed.

    Args:
        subjects: all of them.
        store: where they are kept.

    Raises:
        ConfigError: one is done already, with other settings.
        StorageError: the store cannot be reached or written.

    Attributes:
        records: what it took to train those that are done, by name.
        failures: why others cannot be trained, by name.
    """

    def __init__(self, subjects: Sequence[FleetSubject], store: Store) -> None:
        self._subjects = {subject.name: subject for subject in subjects}
        self._store = store
        self.records = store.finished(self._subjects)
        self.failures: dict[str, str] = {}
        for name, record in self.records.items():
            self._check_same(name, record)
        for subject in self.open:
            try:
                _check_photos(subject.config.instance_data_dir)
            except (SVFitError, OSError) as error:
                self.failures[subject.name] = str(error)
        self.write_costs()  # before any work, so that a store that cannot be written is found out

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def open(self) -> list[FleetSubject]:
        """The subjects that are neither done nor failed, as they came."""
        known = self.records.keys() | self.failures.keys()
        return [subject for name, subject in self._subjects.items() if name not in known]

    @property
    def costs_path(self) -> str:
        """Where it is written what each took."""
        return f"{self._store}/{COSTS_NAME}"

    def settle(self, pack: Sequence[FleetSubject], failures: Mapping[str, str]) -> None:
        """Note what has become of subjects that a worker had; those it says nothing of stay open.

        Args:
            pack: they.
            failures: why some cannot be trained, by name.

        Raises:
            StorageError: the store cannot be reached.
        """
        self.records |= self._store.finished([subject.name for subject in pack])
        self.failures |= failures

    def write_costs(self) -> None:
        """Write a line of JSON for each subject that is done or failed beside the results.

        Raises:
            StorageError: the store cannot be written.
        """
        failed = ({"name": name, "failed": why} for name, why in sorted(self.failures.items()))
        lines = [json.dumps(line) for line in (*self._costs(), *failed)]
        self._store.write(COSTS_NAME, "".join(f"{line}\n" for line in lines).encode())

    def _costs(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in record.items() if key != "settings"}
            for _, record in sorted(self.records.items())
        ]

    def _check_same(self, name: str, record: Mapping[str, Any]) -> None:
        """Raise `ConfigError` if a subject that is done is now to be trained otherwise."""
        before, now = record["settings"], self._subjects[name].settings
        different = [
            f"{key} {clipped(before[key])} there and {clipped(value)} now"
            for key, value in now.items()
            if before.get(key, value) != value
        ]
        if different:
            raise ConfigError(
                f"subject {name!r} is done in {self._store} with other settings: "
                f"{', '.join(different)}; give it another name, or another --output"
            )


def _check_photos(place: str) -> None:
    """Raise an error of ours if a folder holds no photos; what is in a bucket, workers find out."""
    if is_address(place):
        Bucket(place)
    else:
        photo_files(Path(place))
