"""The folder of a run: whether it can be written, what is in it, and the log."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.files.atomic import make_folder, remove_folder, write_atomically
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.training.step import StepRecord

LOG_NAME = "training_log.jsonl"
PICTURES = "validation"
_ROOM = 64 * 2**20  # bytes; several checkpoints of a large model's shifts


def check_output(folder: Path, checkpoint: Path | None, *, overwrite: bool) -> None:
    """Raise `ConfigError` if a run cannot write its folder, or would overwrite an earlier run.

    Args:
        folder: where the run is to be kept; need not exist, and is not made.
        checkpoint: that the run goes on from, if it does.
        overwrite: whether it may take the place of an earlier run.
    """
    earlier = _earlier(folder)
    if earlier and not overwrite and not _is_inside(checkpoint, folder):
        go_on = ", --resume_from_checkpoint=latest to go on with it" if _checkpoints(folder) else ""
        raise ConfigError(
            f"{str(folder)!r} holds {earlier} of an earlier run: add --overwrite to begin anew in "
            f"its place{go_on}, or give another output_dir"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        raise ConfigError(
            f"output_dir {str(folder)!r} cannot be written ({error.strerror}); give another"
        ) from error
    if free < _ROOM:
        raise ConfigError(
            f"output_dir {str(folder)!r} lies where {free / 2**20:.0f} MiB are free; a training "
            f"needs at least {_ROOM / 2**20:.0f}"
        )


def begin_output(folder: Path, checkpoint: Path | None, step: int) -> None:
    """Make the folder of a run, without what an earlier run left that this one does not go on from.

    Args:
        folder: of the run.
        checkpoint: that it goes on from, if it does.
        step: steps done.

    Raises:
        StorageError: there is no room or no permission.
    """
    make_folder(folder)
    lines: list[str] = []
    log = folder / LOG_NAME
    if _is_inside(checkpoint, folder):
        if log.exists():
            lines = [
                line for line in log.read_text(errors="replace").splitlines() if _step(line) <= step
            ]
    else:
        for old in [*_checkpoints(folder), folder / PICTURES]:
            if old.is_dir():
                remove_folder(old)
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(log, lambda target: target.write_text(text))


def log_step(folder: Path, record: StepRecord) -> None:
    """Add a line to the log: the record of a step, and the seconds since 1970."""
    line = json.dumps({**vars(record), "time": round(time.time(), 3)})
    with (folder / LOG_NAME).open("a") as file:
        file.write(line + "\n")


def _step(line: str) -> float:
    """Of a line of the log; infinite where the line was cut off."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return float(parse_json(line)["step"])
    return float("inf")


def _earlier(folder: Path) -> str:
    """What of a run is in a folder that must not be lost."""
    if (folder / WEIGHTS_NAME).exists():
        return "the adapter"
    return "checkpoints" if _checkpoints(folder) else ""


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*")
    return [path for path in found if path.name.partition("-")[2].isdigit()]


def _is_inside(checkpoint: Path | None, folder: Path) -> bool:
    return checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
