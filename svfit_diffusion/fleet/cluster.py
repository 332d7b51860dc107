"""The Ray cluster that a fleet runs on: this machine, or one that is there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from svfit_diffusion.errors import ConfigError, PackageError

_PATIENCE = 10.0  # seconds in which a cluster's head has to answer


def load_ray() -> Any:
    """The package; `PackageError` if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise PackageError(
            "a fleet runs on ray, which is not installed: pip install 'svfit-diffusion[fleet]'"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, while within connected to a cluster; one that this process is on already stays.

    Args:
        address: of the cluster; one of this machine's cores and GPUs alone if not given.

    Raises:
        PackageError: Ray is not installed.
        ConfigError: there is no cluster.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _check_there(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {address!r}" if address else "on this machine"
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"no Ray cluster {where}: {said}; `ray start --head` starts one, and without --address "
            f"this machine alone is used"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_there(address: str) -> None:
    """Raise `OSError` if nobody answers at an address; Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE).close()


def places(nodes: Sequence[Mapping[str, float]], cpus: int) -> tuple[int, int]:
    """How many workers machines have room for, and how many GPUs each has: one where there are any.

    Args:
        nodes: what each machine has, by Ray's names.
        cpus: of each worker.

    Raises:
        ConfigError: there is no room for one.
    """
    gpus = int(any(node.get("GPU", 0) >= 1 for node in nodes))
    room = [
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if gpus else float("inf")))
        for node in nodes
    ]
    if not sum(room):
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        raise ConfigError(
            f"no machine of the cluster has room for a worker of {cpus} CPU cores (the largest has "
            f"{most:g}): give fewer by --cpus_per_worker"
        )
    return sum(room), gpus
