"""Where a run stands, as tensors and numbers: taken from a trainer, and put back into one.

Names are paths with dots. What a run like this one holds is not written down anywhere: it is asked
of a throwaway optimizer of the same kind that makes a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svfit_diffusion.errors import CheckpointError, listed
from svfit_diffusion.files.adapter_tensors import MAX_SHIFT
from svfit_diffusion.training.optimization import make_optimizer
from svfit_diffusion.training.trainer import Trainer

Number = int | float


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands after a step.

    Attributes:
        tensors: shifts, moments, means, importance, on the CPU.
        numbers: steps, rates and the like.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Number]


def take(trainer: Trainer) -> Snapshot:
    """Where a trainer stands."""
    shifts = enumerate(trainer.sigma_parameters())
    tensors: dict[str, Tensor] = {f"delta.{i}": shift for i, shift in shifts}
    numbers: dict[str, Number] = {
        "step": trainer.step,
        "lr_scheduler.last_epoch": trainer.lr_scheduler.last_epoch,
    }
    for name, value in _optimizer_entries(trainer.optimizer.state_dict()):
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            numbers[name] = value
    if trainer.pruner:
        tensors |= {f"pruner.{name}": value for name, value in trainer.pruner.state_dict().items()}
    if trainer.average:
        means = enumerate(trainer.average.shadow_params)
        tensors |= {f"average.{i}": mean for i, mean in means}
        numbers["average.step"] = trainer.average.optimization_step
    if scaler := trainer.accelerator.scaler:
        numbers |= {f"scaler.{name}": value for name, value in scaler.state_dict().items()}
    return Snapshot({n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}, numbers)


def restore(trainer: Trainer, snapshot: Snapshot) -> None:
    """Let a trainer stand where a snapshot was taken.

    Raises:
        CheckpointError: it is not of such a run; the trainer is unchanged.
    """
    problems = list(_problems(trainer, snapshot)) or list(_misplaced(trainer, snapshot))
    if problems:
        raise CheckpointError(listed("it holds what no run like this one can hold", problems))
    tensors, numbers = snapshot.tensors, snapshot.numbers
    trainer.optimizer.load_state_dict(_optimizer_state(trainer, snapshot))
    last_epoch = int(numbers["lr_scheduler.last_epoch"])
    trainer.lr_scheduler.load_state_dict(
        {
            **trainer.lr_scheduler.state_dict(),
            "last_epoch": last_epoch,
            "_step_count": last_epoch + 1,
            "_last_lr": [group["lr"] for group in trainer.optimizer.param_groups],
        }
    )
    if trainer.pruner:
        trainer.pruner.load_state_dict(_under("pruner", tensors))
    if trainer.average:
        trainer.average.optimization_step = int(numbers["average.step"])
        for i, mean in enumerate(trainer.average.shadow_params):
            mean.copy_(tensors[f"average.{i}"])
    scaler = _under("scaler", numbers)
    if trainer.accelerator.scaler and scaler:
        trainer.accelerator.scaler.load_state_dict(scaler)
    with torch.no_grad():
        for i, shift in enumerate(trainer.sigma_parameters()):
            shift.copy_(tensors[f"delta.{i}"])
    trainer.stepper.step = int(numbers["step"])


def _optimizer_entries(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor | Number]]:
    """What changes in an optimizer: tensors and numbers, no flags."""
    for i, group in enumerate(state["param_groups"]):
        for name, value in group.items():
            if name != "params" and isinstance(value, tuple):
                yield from ((f"group.{i}.{name}.{j}", part) for j, part in enumerate(value))
            elif _is_number(value):
                yield f"group.{i}.{name}", value
    for i, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) or _is_number(value):
                yield f"optimizer.{i}.{name}", value


def _optimizer_state(trainer: Trainer, snapshot: Snapshot) -> dict[str, Any]:
    """The state dict of the optimizer in a snapshot."""
    groups = []
    for i, own in enumerate(trainer.optimizer.state_dict()["param_groups"]):
        saved: dict[str, Any] = _under(f"group.{i}", snapshot.numbers)
        group = {name: value for name, value in own.items() if not _is_number(value)}
        for name, value in group.items():
            if isinstance(value, tuple):
                group[name] = tuple(saved.pop(f"{name}.{j}") for j in range(len(value)))
        groups.append(group | saved)
    state: dict[int, dict[str, Any]] = {}
    for name, value in (_under("optimizer", snapshot.tensors | snapshot.numbers)).items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = value
    return {"state": state, "param_groups": groups}


def _problems(trainer: Trainer, snapshot: Snapshot) -> Iterator[str]:
    """What keeps a snapshot from being one of a run like a trainer's."""
    wanted, optional = _expected(trainer)
    found: dict[str, Any] = {**snapshot.tensors, **snapshot.numbers}
    if not trainer.accelerator.scaler:
        found = {name: value for name, value in found.items() if not name.startswith("scaler.")}
    # What never had a gradient has no state, all other parameters have all of it.
    stated = {_parameter_of(name) for name in found} - {""}
    for name, example in wanted.items():
        is_stateless = _parameter_of(name) and _parameter_of(name) not in stated
        if name in found:
            yield from _problems_of(name, found[name], example)
        elif name not in optional and not is_stateless:
            yield f"{name} is missing"
    yield from (f"{name} is unknown" for name in found if name not in wanted)


def _expected(trainer: Trainer) -> tuple[dict[str, Any], set[str]]:
    """Examples of what a snapshot of a trainer holds by name, and names that it may lack."""
    groups: list[dict[str, Any]] = [
        {
            "params": [torch.zeros_like(shift).requires_grad_() for shift in group["params"]],
            "lr": 1.0,
        }
        for group in trainer.optimizer.param_groups
    ]
    throwaway = make_optimizer(trainer.config.optimizer_settings, groups)
    at_first = dict(_optimizer_entries(throwaway.state_dict()))
    shifts: list[Tensor] = [shift for group in groups for shift in group["params"]]
    for shift in shifts:
        shift.grad = torch.ones_like(shift)
    throwaway.step()
    stepped = dict(_optimizer_entries(throwaway.state_dict()))
    own = take(trainer)
    kept = {n: v for n, v in {**own.tensors, **own.numbers}.items() if not _is_of_optimizer(n)}
    rates = {f"group.{i}.initial_lr": 1.0 for i in range(len(groups))}
    late = {name for name in stepped if name not in at_first and not _parameter_of(name)}
    optional = late | {name for name in kept if name.startswith("scaler.")}
    return {**kept, **stepped, **rates}, optional


def _problems_of(name: str, value: Any, example: Any) -> Iterator[str]:
    """What keeps a value from standing where an example stands."""
    if isinstance(example, Tensor) != isinstance(value, Tensor):
        yield f"{name} is a {type(value).__name__}, expected a {type(example).__name__}"
    elif not isinstance(value, Tensor):
        if not math.isfinite(value) and value != example:
            yield f"{name} is {value}"
    elif (value.shape, value.dtype) != (example.shape, example.dtype):
        yield (
            f"{name} is {tuple(value.shape)} {value.dtype}, expected {tuple(example.shape)} "
            f"{example.dtype}"
        )
    elif value.numel() and value.is_floating_point():
        smallest, largest = (float(bound) for bound in value.aminmax())
        if not math.isfinite(smallest) or not math.isfinite(largest):
            yield f"{name} holds NaN or infinite values"
        elif name.startswith(("delta.", "average.")) and max(-smallest, largest) > MAX_SHIFT:
            yield f"{name} holds values beyond ±{MAX_SHIFT:g}"
        elif name.endswith(("exp_avg_sq", "importance")) and smallest < 0:
            yield f"{name} holds negative values"


def _misplaced(trainer: Trainer, snapshot: Snapshot) -> Iterator[str]:
    """Counts of steps that are none, or of more steps than the run has made."""
    found = {**snapshot.tensors, **snapshot.numbers}
    counts = {"step": float(found["step"])}
    for name, value in found.items():
        if name in ("lr_scheduler.last_epoch", "average.step") or (
            _parameter_of(name) and name.endswith(".step")
        ):
            counts[name] = float(value)
    limit = trainer.total_steps
    for name, count in counts.items():
        if not (count.is_integer() and 0 <= count <= limit):
            yield f"{name} is {count:g}, expected a whole number from 0 to {limit}"
        elif name == "step":
            limit = int(count)


def _parameter_of(name: str) -> str:
    """The number of the parameter whose optimizer state that is; `""` of anything else."""
    kind, _, rest = name.partition(".")
    return rest.partition(".")[0] if kind == "optimizer" else ""


def _is_of_optimizer(name: str) -> bool:
    return name.startswith(("group.", "optimizer."))


def _under(prefix: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names begin with a prefix and a dot, without it."""
    start = f"{prefix}."
    return {n.removeprefix(start): value for n, value in entries.items() if n.startswith(start)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
