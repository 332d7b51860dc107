"""Where a fleet keeps what comes out: a folder or a bucket, through fsspec.

    rex/…                      what a training alone leaves, checkpoints included
    .fleet/finished/rex.json   written last: rex is done, and what it took
    fleet.jsonl                the same of all, a line each

A file appears there whole or not at all, as objects in buckets do by themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from svfit_diffusion.errors import StorageError
from svfit_diffusion.files.bucket import Bucket
from svfit_diffusion.files.json_text import parse_json

COSTS_NAME = "fleet.jsonl"
_FINISHED = ".fleet/finished"


class Store(Bucket):
    """A fleet's folder, here or in a bucket, with a note of each subject that is done."""

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Note that a subject is done, once all else of it is there.

        Args:
            name: of the subject.
            record: what it took, as JSON has it.

        Raises:
            StorageError: it cannot be written.
        """
        self.write(_note(name), json.dumps(record, indent=2).encode() + b"\n")

    def finished(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records of those of some subjects that are done, by name.

        Raises:
            StorageError: the place cannot be reached, or one is no record.
        """
        there = self.files(_FINISHED)
        done = [name for name in names if f"{name}.json" in there]
        texts = self.read_all([_note(name) for name in done])
        return {name: _record(name, text) for name, text in zip(done, texts, strict=True)}


def _note(name: str) -> str:
    return f"{_FINISHED}/{name}.json"


def _record(name: str, text: bytes) -> dict[str, Any]:
    try:
        record = parse_json(text.decode())
    except ValueError as error:
        raise StorageError(f"{_note(name)} is no record of a fleet: {error}") from None
    if not isinstance(record, dict) or not all(fits(record.get(key)) for key, fits in _RECORD):
        raise StorageError(
            f"{_note(name)} is no record of a fleet; remove it, and {name} is trained again"
        )
    return record


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


_RECORD: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("steps", _is_amount),
    ("worker_seconds", _is_amount),
    ("settings", lambda value: isinstance(value, dict)),
)
"""What every record says, and what it must be."""
