"""Settings of a fleet's training, beside those of each subject's."""

from __future__ import annotations

from dataclasses import dataclass

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.arguments import AT_ONCE
from svfit_diffusion.training.fields import setting

_AT_LEAST_ONE = ("workers", "cpus_per_worker", "subjects_per_pass")


@dataclass
class FleetSettings:
    """How subjects are spread over workers.

    Raises:
        ConfigError: a value is missing or out of range.
    """

    output: str = setting(
        "", "Folder, or address of a bucket such as s3://bucket/folder, for what comes out."
    )
    address: str | None = setting(
        None, "Ray cluster to train on, such as auto or 10.0.0.1:6379; default: this machine alone."
    )
    workers: int | None = setting(
        None,
        "How many workers; default: one per GPU, or without any as many as there are cores for.",
    )
    cpus_per_worker: int = setting(2, "CPU cores of each.")
    subjects_per_pass: int = setting(
        AT_ONCE, "How many subjects to train in one pass; train_batch_size is of each."
    )
    retries: int = setting(
        3, "How often a subject goes to another worker, where those that trained it have died."
    )
    hang_timeout: float = setting(
        7200.0,
        "Seconds without a step, preparations included, after which a worker is taken for dead.",
    )
    scratch: str | None = setting(
        None, "Folder on each worker's machine for what it works with; default: the system's."
    )

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.retries < 0:
            raise ConfigError(f"retries must not be negative, got {self.retries}")
        if not 0 < self.hang_timeout < float("inf"):
            raise ConfigError(
                f"hang_timeout must be a number of seconds above 0, got {self.hang_timeout}"
            )
        if not self.output:
            raise ConfigError("--output is missing: a folder, or the address of a bucket")
