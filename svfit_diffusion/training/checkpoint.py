"""Checkpoint folders: all that a run needs to go on, checked before it is believed.

A folder holds the adapter at that step, ready to use; `training_state.safetensors` and
`training_state.json`, where the run stands (`snapshot`) and which run it is; and `SHA256SUMS` of
these three. Random state needs none, see `draws.draw_example`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, write_adapter
from svfit_diffusion.files.atomic import write_folder_atomically, write_safetensors
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.files.reading import read_safetensors
from svfit_diffusion.files.sums import check_sums, write_sums
from svfit_diffusion.training.snapshot import Snapshot

_FORMAT = "svfit-checkpoint-2"
_TENSORS = "training_state.safetensors"
_RECORD = "training_state.json"
_FIRST_FORMAT = "training_state.pt"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds beside its adapter.

    Attributes:
        run: names the run.
        order: counts what was written into an output folder, by this run and others.
        seed: of everything random in it.
        settings: that a run which goes on from here must share.
        fingerprints: of the base's weights, per component.
        snapshot: where the run stands.
    """

    run: str
    order: int
    seed: int
    settings: dict[str, Any]
    fingerprints: dict[str, str]
    snapshot: Snapshot


def write_checkpoint(folder: Path, checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Write a checkpoint folder, whole or not at all.

    Raises:
        StorageError: there is no room or no permission; a folder that was there is untouched.
    """
    record = {n: value for n, value in vars(checkpoint).items() if n != "snapshot"}
    record |= {"format": _FORMAT, "numbers": checkpoint.snapshot.numbers}
    text = json.dumps(record, indent=2, sort_keys=True)

    def write(target: Path) -> None:
        write_adapter(target / WEIGHTS_NAME, adapter)
        write_safetensors(target / _TENSORS, checkpoint.snapshot.tensors, {"format": _FORMAT})
        (target / _RECORD).write_text(text, encoding="utf-8")
        write_sums(target)

    write_folder_atomically(folder, write)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, as far as it can be checked without the run.

    Raises:
        CheckpointError: it is none, incomplete, damaged or of another format.
    """
    if (folder / _FIRST_FORMAT).exists():
        raise CheckpointError(
            f"{folder} is of the first format, without checksums, and cannot be resumed; its "
            f"adapter {WEIGHTS_NAME} is as usable as ever"
        )
    check_sums(folder, (WEIGHTS_NAME, _TENSORS, _RECORD))
    try:
        record = parse_json((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _RECORD} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"{folder / _RECORD} is of another format than {_FORMAT}")
    numbers = _object_of(record, "numbers", (int, float), folder)
    tensors, _ = read_safetensors(folder / _TENSORS)
    return Checkpoint(
        _one(record, "run", str, folder),
        _one(record, "order", int, folder),
        _one(record, "seed", int, folder),
        _one(record, "settings", dict, folder),
        _object_of(record, "fingerprints", (str,), folder),
        Snapshot({name: tensor.clone() for name, tensor in tensors.items()}, numbers),
    )


def _one(record: dict[str, Any], name: str, kind: type, folder: Path) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise CheckpointError(
            f"{folder / _RECORD} has {name} {str(value)[:80]!r}, expected {kind.__name__}"
        )
    return value


def _object_of(
    record: dict[str, Any], name: str, kinds: tuple[type, ...], folder: Path
) -> dict[str, Any]:
    entries: dict[str, Any] = _one(record, name, dict, folder)
    wrong = [key for key, value in entries.items() if type(value) not in kinds]
    if wrong:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(f"{folder / _RECORD}: {name} {wrong[0][:80]!r} is no {expected}")
    return entries
