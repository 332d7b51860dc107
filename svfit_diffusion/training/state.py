"""The checkpoints of a run in its output folder: written, limited in number, found and resumed.

`checkpoint-<step>` is a folder (`checkpoint`). Another run may have left some in the same output
folder; `training_run.json` names the one that was started last.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from svfit_diffusion.errors import CheckpointError, listed
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.files.atomic import clean_up, make_folder, remove_folder, write_atomically
from svfit_diffusion.files.hub import PICTURE_NAME
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.files.scratch import SCRATCH_NAME
from svfit_diffusion.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.output import PICTURES
from svfit_diffusion.training.snapshot import restore, take
from svfit_diffusion.training.trainer import Trainer

logger = logging.getLogger(__name__)

_RUN = "training_run.json"
_WRITTEN = ("checkpoint-*", WEIGHTS_NAME, "training_*", PICTURE_NAME, SCRATCH_NAME, PICTURES)
"""What a run writes into its output folder, as patterns."""


def tidy(output_dir: Path) -> None:
    """Undo what a run that died has left half done in its output folder.

    Raises:
        StorageError: there is no permission.
    """
    for name in _WRITTEN:
        clean_up(output_dir, name)
    for folder in (output_dir / PICTURES, *(output_dir / PICTURES).glob("*/")):
        clean_up(folder, "*.png")


def begin_run(trainer: Trainer, output_dir: Path) -> None:
    """Note in an output folder which run was started last.

    Raises:
        StorageError: there is no room or no permission.
    """
    text = json.dumps({"run": trainer.run})
    make_folder(output_dir)
    write_atomically(output_dir / _RUN, lambda target: target.write_text(text, encoding="utf-8"))


def save_checkpoint(trainer: Trainer, output_dir: Path, limit: int | None = None) -> Path:
    """Write `checkpoint-<step>` into `output_dir`, then remove the run's oldest beyond `limit`.

    Raises:
        StorageError: there is no room or no permission; no half-written checkpoint is left.
    """
    make_folder(output_dir)
    others, _ = _read_all(output_dir)
    checkpoint = Checkpoint(
        run=trainer.run,
        order=1 + max((other.order for other in others.values()), default=0),
        seed=trainer.seed,
        settings=trainer.config.binding_settings(),
        fingerprints=trainer.subject.fingerprints,
        snapshot=take(trainer),
    )
    final = output_dir / f"checkpoint-{trainer.step}"
    write_checkpoint(final, checkpoint, trainer.adapter())
    if limit:
        before = [path for path in _of_run(others, trainer.run) if path != final]
        for old in before[: len(before) - (limit - 1)]:
            remove_folder(old)
    return final


def find_checkpoint(resume_from: str, output_dir: Path) -> Path | None:
    """The checkpoint folder that `resume_from` means; None for `latest` where there is none.

    `latest` is the last whole one of the run that was started last in the output folder.

    Raises:
        CheckpointError: there is no such folder; or, for `latest`, checkpoints of other runs only.
    """
    if resume_from == "latest":
        return _latest(output_dir)
    for folder in (Path(resume_from), output_dir / resume_from):
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"no checkpoint {resume_from!r}; in {str(output_dir)!r} there are: "
        f"{', '.join(c.name for c in _folders(output_dir)) or 'none'}"
    )


def check_settings(config: TrainingConfig, folder: Path) -> int:
    """The seed of the run that a checkpoint belongs to, if `config` can continue that run.

    Raises:
        CheckpointError: the folder is no whole checkpoint, or of a run with other settings.
    """
    saved = read_checkpoint(folder)
    own = json.loads(json.dumps(config.binding_settings()))
    if config.seed is None:
        own["seed"] = saved.seed
    theirs = {**saved.settings, "seed": saved.seed}
    different = [
        f"{name}: {theirs.get(name)!r} in the checkpoint, {value!r} now"
        for name, value in own.items()
        if theirs.get(name) != value
    ]
    if different:
        raise CheckpointError(
            f"{folder} was trained with other settings, so it cannot be resumed exactly:\n  "
            + "\n  ".join(different)
            + "\nUse those settings, or start anew without resume_from_checkpoint."
        )
    return saved.seed


def resume(trainer: Trainer, folder: Path) -> None:
    """Continue the run that `folder` was saved from. On an error the trainer is unchanged.

    Raises:
        CheckpointError: the checkpoint is damaged, or of a run with other settings.
    """
    seed = check_settings(trainer.config, folder)
    if seed != trainer.seed:
        raise CheckpointError(f"{folder} was trained with seed {seed}, this run has {trainer.seed}")
    saved = read_checkpoint(folder)
    if saved.fingerprints != trainer.subject.fingerprints:
        raise CheckpointError(f"{folder} was trained on another base model")
    try:
        restore(trainer, saved.snapshot)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    trainer.run = saved.run


def _latest(output_dir: Path) -> Path | None:
    whole, reasons = _read_all(output_dir)
    for reason in reasons:
        logger.warning("Skipping a checkpoint: %s", reason)
    if not whole and not reasons:
        return None
    if not whole:
        raise CheckpointError(
            listed(f"no checkpoint in {output_dir} is whole; start anew without it", reasons)
        )
    own = _of_run(whole, _run_on_record(output_dir) or max(whole.values(), key=_order).run)
    if own:
        return own[-1]
    runs = {checkpoint.run for checkpoint in whole.values()}
    found = [f"{run[:8]}: {', '.join(p.name for p in _of_run(whole, run))}" for run in sorted(runs)]
    raise CheckpointError(
        listed(
            f"the training that was started last in {output_dir} has left no whole checkpoint, so "
            f"there is no latest; resume one of other runs by its name, or start anew",
            found,
        )
    )


def _run_on_record(output_dir: Path) -> str | None:
    try:
        record = parse_json((output_dir / _RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    run = record.get("run") if isinstance(record, dict) else None
    return run if isinstance(run, str) else None


def _read_all(output_dir: Path) -> tuple[dict[Path, Checkpoint], list[str]]:
    """The whole checkpoints in a folder, and why the others are not."""
    whole, reasons = {}, []
    for path in _folders(output_dir):
        try:
            whole[path] = read_checkpoint(path)
        except CheckpointError as error:
            reasons.append(str(error))
    return whole, reasons


def _of_run(checkpoints: Mapping[Path, Checkpoint], run: str) -> list[Path]:
    """Those of a run, in the order in which they were written."""
    own = [path for path, checkpoint in checkpoints.items() if checkpoint.run == run]
    return sorted(own, key=lambda path: checkpoints[path].order)


def _order(checkpoint: Checkpoint) -> int:
    return checkpoint.order


def _folders(output_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
