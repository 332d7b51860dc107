"""A server as a Ray Serve deployment: replicas of the API, each with a base model of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from diffusers import DiffusionPipeline
from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from torch import nn

import svfit_diffusion  # noqa: F401  (gives pipelines the adapter methods)
from svfit_diffusion.errors import ConfigError, clipped
from svfit_diffusion.fleet.cluster import connected
from svfit_diffusion.serving.api_guard import check_key
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.images_api import Service, create_app
from svfit_diffusion.serving.library import AdapterLibrary
from svfit_diffusion.serving.limits import RequestLimits
from svfit_diffusion.serving.line import LineLimits
from svfit_diffusion.serving.metrics import Metrics
from svfit_diffusion.serving.metrics_board import MetricsBoard
from svfit_diffusion.serving.shelf import Shelf
from svfit_diffusion.training.base import BaseSource, load_base, unusable

logger = logging.getLogger(__name__)

NAME = "svfit"
_REQUESTS_BESIDE = 64  # of other kinds than pictures


@dataclass(frozen=True)
class ServeSettings:
    """What a replica serves.

    Attributes:
        base: the base model.
        library: folder or URL of adapters.
        device: where pictures are drawn.
        dtype: what they are computed in.
        model: what the base model is called; as its source by default.
        adapter_bytes: most bytes of adapters in memory; None keeps all, from the start.
        keys: of those who may ask; without any, everyone may.
        line: how much may wait, and be drawn together.
        limits: of a request.

    Raises:
        ConfigError: a key could be guessed, or cannot be sent.
    """

    base: BaseSource
    library: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    model: str = ""
    adapter_bytes: int | None = None
    keys: tuple[str, ...] = ()
    line: LineLimits = field(default_factory=LineLimits)
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        for key in self.keys:
            check_key(key)


def make_service(settings: ServeSettings) -> Service:
    """Load the base model and, unless their memory is bounded, all adapters of the library.

    An adapter that cannot be used is named in the log, and the others are served.

    Raises:
        ConfigError: the base model or the library cannot be used.
        StorageError: the library cannot be reached.
    """
    library = AdapterLibrary(settings.library)
    pipe = load_base(settings.base)
    pipe.set_progress_bar_config(disable=True)
    shelf = Shelf(pipe, library, settings.adapter_bytes)
    if settings.adapter_bytes is None:
        # Before the base is rounded: the basis is that of its full precision.
        failures = shelf.fill(file.name for file in library.files())
        for name, error in failures.items():
            logger.warning("adapter %s is not served: %s", name, error)
    place(pipe, settings.device, settings.dtype)
    metrics = Metrics()
    engine = Engine(pipe, shelf, settings.line, metrics)
    metrics.watch(engine)
    return Service(engine, library, settings.model or settings.base.name, settings.limits, metrics)


def place(pipe: Any, device: str, dtype: torch.dtype) -> None:
    """Bring a base model to where it draws, in the layout that convolutions are fastest in."""
    pipe.to(device)
    if dtype != torch.float32:  # as it was loaded
        pipe.to(dtype)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
            if all(parameter.dim() <= 4 for parameter in component.parameters()):
                component.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def served(
    settings: ServeSettings,
    *,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[None]:
    """While within, requests are answered, by replicas on this machine or on a Ray cluster.

    Args:
        settings: of every replica.
        address: of a cluster; this machine alone if not given.
        host: where to listen; all machines of a cluster do.
        port: where to listen.
        replicas: how many.
        cpus: of each replica.
        gpus: of each replica.

    Raises:
        ConfigError: there is no cluster at that address, or replicas do not start on it.
        PackageError: Ray is missing.
        StorageError: the library cannot be reached.
    """
    if address is None:  # a cluster's machines may have what is not here
        _check_here(settings)
    with connected(address) as ray:
        from ray import serve

        serve.start(http_options={"host": host, "port": port})
        board = ray.remote(MetricsBoard).options(num_cpus=0).remote()
        deployment = serve.deployment(
            serve.ingress(_builder(settings, board))(),
            name=NAME,
            num_replicas=replicas,
            # The engine has a line of its own, which is fair; Ray's must keep nothing from it.
            max_ongoing_requests=settings.line.waiting + settings.line.batch + _REQUESTS_BESIDE,
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        )
        try:
            _run(serve, deployment)
            yield
        finally:
            serve.delete(NAME)


def _check_here(settings: ServeSettings) -> None:
    """Raise at once for what replicas would try to load for minutes."""
    AdapterLibrary(settings.library)
    name = settings.base.name
    if not Path(name).is_file():
        try:
            DiffusionPipeline.load_config(name, revision=settings.base.revision)
        except Exception as error:
            raise unusable(name, error) from error


def _run(serve: Any, deployment: Any) -> None:
    try:
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications[NAME].deployments.get(NAME)
        # The end of a traceback says what was wrong.
        said = (status.message if status else str(error)).strip().splitlines() or [str(error)]
        raise ConfigError(f"no replica could be started: {clipped(said[-1])}") from error


def _builder(settings: ServeSettings, board: Any) -> Callable[[], FastAPI]:
    """What makes the API on a replica; Ray wants a function.

    Args:
        settings: of the replica.
        board: the actor of the `MetricsBoard` that replicas share.
    """

    def build() -> FastAPI:
        own = uuid4().hex[:8]

        async def share(counted: Sequence[Metric]) -> Sequence[Metric]:
            all_of_them: Sequence[Metric] = await board.exchange.remote(own, counted)
            return all_of_them

        return create_app(make_service(settings), settings.keys, share)

    return build
