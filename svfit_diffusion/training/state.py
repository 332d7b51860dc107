"""Checkpoints of a training run: saved whole, limited in number, resumed exactly.

`checkpoint-<step>/` holds the adapter at that step, ready to use, the settings and base, and
`training_state.pt`: optimizer, schedule, loss-scaler and pruning state. Random state needs none,
see `draws.draw_example`.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.trainer import Trainer

_STATE = "training_state.pt"
_SETTINGS = "training_config.json"


def save_checkpoint(trainer: Trainer, output_dir: Path, limit: int | None = None) -> Path:
    """Write `checkpoint-<step>` into `output_dir`, then remove the oldest beyond `limit`.

    Raises:
        OSError: it could not be written; no half-written checkpoint is left.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    final = output_dir / f"checkpoint-{trainer.step}"
    temporary = Path(tempfile.mkdtemp(dir=output_dir, prefix=f".{final.name}."))
    try:
        trainer.save(temporary)
        settings = {
            **trainer.config.binding_settings(),
            "seed": trainer.seed,
            "fingerprints": trainer.subject.fingerprints,
        }
        (temporary / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True))
        torch.save(_state(trainer), temporary / _STATE)
        temporary.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(output_dir)[: -limit if limit else 0]:
        shutil.rmtree(old)
    return final


def find_checkpoint(resume_from: str, output_dir: Path) -> Path | None:
    """The checkpoint folder that `resume_from` means; None for `latest` where there is none.

    Raises:
        CheckpointError: there is no such folder.
    """
    if resume_from == "latest":
        checkpoints = _checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    for folder in (Path(resume_from), output_dir / resume_from):
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"no checkpoint {resume_from!r}; in {str(output_dir)!r} there are: "
        f"{', '.join(c.name for c in _checkpoints(output_dir)) or 'none'}"
    )


def check_settings(config: TrainingConfig, folder: Path) -> int:
    """The seed of the run that a checkpoint belongs to, if `config` can continue that run.

    Raises:
        CheckpointError: the folder is no checkpoint, or of a run with other settings.
    """
    saved = _settings(folder)
    own = config.binding_settings()
    if config.seed is None:
        own["seed"] = saved["seed"]
    own = json.loads(json.dumps(own))
    different = [
        f"{name}: {saved.get(name)!r} in the checkpoint, {value!r} now"
        for name, value in own.items()
        if saved.get(name) != value
    ]
    if different:
        raise CheckpointError(
            f"{folder} was trained with other settings, so it cannot be resumed exactly:\n  "
            + "\n  ".join(different)
            + "\nUse those settings, or start anew without resume_from_checkpoint."
        )
    return int(saved["seed"])


def resume(trainer: Trainer, folder: Path) -> None:
    """Continue the run that `folder` was saved from. On an error the trainer is unchanged.

    Raises:
        CheckpointError: the checkpoint is damaged, or of a run with other settings.
    """
    seed = check_settings(trainer.config, folder)
    if seed != trainer.seed:
        raise CheckpointError(f"{folder} was trained with seed {seed}, this run has {trainer.seed}")
    if _settings(folder).get("fingerprints") != trainer.subject.fingerprints:
        raise CheckpointError(f"{folder} was trained on another base model")
    try:
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        _restore(trainer, state)
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder / _STATE} is missing or damaged: {error}") from error


def _checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} is not a training checkpoint: {error}") from error
    if not isinstance(settings, dict) or "seed" not in settings:
        raise CheckpointError(f"{folder / _SETTINGS} does not hold training settings")
    return settings


def _state(trainer: Trainer) -> dict[str, Any]:
    scaler = trainer.accelerator.scaler
    return {
        "step": trainer.step,
        "deltas": [parameter.detach().cpu() for parameter in trainer.sigma_parameters()],
        "optimizer": trainer.optimizer.state_dict(),
        "lr_scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "pruner": trainer.pruner.state_dict() if trainer.pruner else None,
        "average": trainer.average.state_dict() if trainer.average else None,
    }


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    parameters = trainer.sigma_parameters()
    deltas = state["deltas"]
    if [delta.shape for delta in deltas] != [parameter.shape for parameter in parameters]:
        raise ValueError("it holds shifts of other shapes")
    if trainer.pruner:
        trainer.pruner.load_state_dict(state["pruner"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    if trainer.average:
        trainer.average.load_state_dict(state["average"])
    if trainer.accelerator.scaler and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    with torch.no_grad():
        for parameter, delta in zip(parameters, deltas, strict=True):
            parameter.copy_(delta)
    trainer.stepper.step = int(state["step"])
