"""The HTTP API: OpenAI's images endpoint, with adapters."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svfit_diffusion.errors import AdapterNameError, BusyError, ConfigError
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.serving.api_errors import add_error_handlers, error_response
from svfit_diffusion.serving.api_guard import BodyBounds, Gate, client_of
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.image_request import ImagesRequest, pictures_in
from svfit_diffusion.serving.library import AdapterLibrary
from svfit_diffusion.serving.limits import RequestLimits
from svfit_diffusion.serving.line import Ticket
from svfit_diffusion.serving.metrics import Metrics
from svfit_diffusion.serving.metrics_board import EVERY

_ADAPTERS = "/v1/adapters"
_HEALTH = "/health"
_LEFT = 499
"""What nginx says of a client that closed its connection."""


@dataclass(frozen=True)
class Service:
    """What an API serves.

    Attributes:
        engine: that draws.
        library: of adapters.
        model: what the base model is called.
        limits: of a request.
        metrics: that the engine reports to.
        started: seconds since 1970.
    """

    engine: Engine
    library: AdapterLibrary
    model: str
    limits: RequestLimits
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))


Share = Callable[[Sequence[Metric]], Awaitable[Sequence[Metric]]]
"""Tells other replicas what this one counted, and returns what all have."""


async def keep(counted: Sequence[Metric]) -> Sequence[Metric]:
    """A `Share` where there are no other replicas."""
    return counted


def create_app(service: Service, keys: Collection[str] = (), share: Share = keep) -> FastAPI:
    """The API of a service; when it shuts down, so does the engine.

    Args:
        service: what is served.
        keys: of those who may ask; without any, everyone may.
        share: of counts with other replicas.
    """

    async def tell_counts() -> None:
        while True:
            await share(list(service.metrics.registry.collect()))
            await asyncio.sleep(EVERY)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telling = asyncio.create_task(tell_counts())
        yield
        telling.cancel()
        await run_in_threadpool(service.engine.close)

    app = FastAPI(title="svfit", lifespan=lifespan)
    add_error_handlers(app)
    _add_pictures(app, service)
    _add_adapters(app, service)
    _add_state(app, service)
    _add_metrics(app, service.metrics, share)
    app.add_middleware(BodyBounds, uploads=_ADAPTERS, upload_bytes=service.limits.upload_bytes)
    app.add_middleware(Gate, keys=keys, open_path=_HEALTH)
    app.add_middleware(_Counted, metrics=service.metrics)
    return app


def _add_pictures(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/generations")
    async def generate(
        wanted: ImagesRequest, request: Request, who: Annotated[str, Depends(client_of)]
    ) -> Response:
        """Draw pictures."""
        if wanted.model not in (None, service.model):
            raise ConfigError(f"got model {wanted.model[:64]!r}; this server has {service.model!r}")
        pictures = pictures_in(wanted, service.engine.drawing, service.limits)
        tickets = await run_in_threadpool(service.engine.submit, pictures, who)
        images = await _images_of(tickets, request)
        if images is None:
            return Response(status_code=_LEFT)
        encoded = await run_in_threadpool(lambda: [_png(image) for image in images])
        data = [
            {"b64_json": png, "seed": picture.seed}
            for png, picture in zip(encoded, pictures, strict=True)
        ]
        return JSONResponse({"created": int(time.time()), "output_format": "png", "data": data})


def _add_adapters(app: FastAPI, service: Service) -> None:
    library = service.library

    @app.get(_ADAPTERS)
    def list_adapters() -> dict[str, Any]:
        """All adapters of the library."""
        return _listed([_adapter(file.name, bytes=file.bytes) for file in library.files()])

    @app.post(_ADAPTERS, response_model=None)
    def add_adapter(
        file: UploadFile, name: Annotated[str, Form()]
    ) -> dict[str, Any] | JSONResponse:
        """Add an adapter that fits the base model."""
        if (there := len(library.files())) >= service.limits.library:
            raise BusyError(
                f"the library has {there} adapters, as many as it may: delete one first"
            )
        data = file.file.read()

        def check(adapter: Adapter) -> None:
            service.engine.between(lambda: service.engine.shelf.try_on(adapter)).result()

        try:
            library.add(name, data, check)
        except AdapterNameError as error:
            return error_response(409, str(error), code="adapter_exists", param="name")
        return _adapter(name, bytes=len(data))

    @app.delete(_ADAPTERS + "/{name}")
    def delete_adapter(name: str) -> dict[str, Any]:
        """Delete an adapter for good."""
        library.delete(name)
        service.engine.between(lambda: service.engine.shelf.drop(name)).result()
        return _adapter(name, deleted=True)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """The base model."""
        model = {"id": service.model, "object": "model", "created": service.started}
        return _listed([model | {"owned_by": "svfit"}])

    @app.get(_HEALTH)
    def health() -> JSONResponse:
        """Whether pictures are drawn."""
        if not service.engine.is_alive:
            return error_response(503, "the engine draws no more", "server_error", "stopping")
        return JSONResponse({"status": "ok", "waiting": len(service.engine)})


def _add_metrics(app: FastAPI, metrics: Metrics, share: Share) -> None:
    @app.get("/metrics")
    async def counts() -> Response:
        """What was counted, for Prometheus."""
        families = _Families(await share(list(metrics.registry.collect())))
        return Response(generate_latest(families), media_type=CONTENT_TYPE_LATEST)


class _Families(CollectorRegistry):
    """Counts as they are, for `generate_latest`."""

    def __init__(self, families: Sequence[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _images_of(tickets: Sequence[Ticket], request: Request) -> list[Image.Image] | None:
    """The pictures of all tickets; None if the client left before."""
    drawing = asyncio.gather(*(asyncio.wrap_future(ticket.image) for ticket in tickets))
    leaving = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait((drawing, leaving), return_when=asyncio.FIRST_COMPLETED)
        return drawing.result() if drawing.done() else None
    finally:
        leaving.cancel()
        drawing.cancel()
        for ticket in tickets:
            ticket.leave()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _listed(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data}


def _adapter(name: str, **facts: object) -> dict[str, Any]:
    return {"id": name, "object": "adapter", **facts}


class _Counted:
    """ASGI middleware that counts answers by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # paths may be of any number
            self._metrics.answered(route, status, time.monotonic() - began)
