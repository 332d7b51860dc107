"""The HTTP API over the tiny pipeline, without Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving_helpers import NAMES, held, of_another_base, picture, pixels
from tiny_adapters import make_adapter

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.serving.deployment import ServeSettings
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.images_api import Service, create_app
from svfit_diffusion.serving.library import AdapterLibrary
from svfit_diffusion.serving.limits import RequestLimits
from svfit_diffusion.serving.line import LineLimits
from svfit_diffusion.serving.metrics import Metrics
from svfit_diffusion.serving.metrics_board import MetricsBoard
from svfit_diffusion.serving.shelf import Shelf
from svfit_diffusion.training.base import BaseSource

GENERATIONS = "/v1/images/generations"
WANTED: dict[str, Any] = {
    "prompt": "a photo of a dog",
    "seed": 3,
    "size": "16x16",
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
}


def make_service(engine: Engine, library: AdapterLibrary) -> Service:
    metrics = Metrics()
    engine._observer = metrics
    metrics.watch(engine)
    limits = RequestLimits(pictures=3, side=64, steps=10, prompt=50, upload_bytes=100_000)
    return Service(engine, library, "tiny", limits, metrics)


@pytest.fixture
def service(make_engine: Any, library: AdapterLibrary) -> Service:
    engine = make_engine(LineLimits(batch=4, waiting=6, of_a_client=5, linger=0))
    return make_service(engine, library)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a service that no test changes."""
    library = AdapterLibrary(str(tmp_path_factory.mktemp("library")))
    pipe = tiny.make_tiny_pipeline()
    service = make_service(Engine(pipe, Shelf(pipe, library)), library)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def problem(answer: Any, status: int) -> dict[str, Any]:
    """What is wrong, of an answer in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def images(answer: Any) -> list[Any]:
    assert answer.status_code == 200, answer.text
    encoded = [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(png)), dtype=np.int16) for png in encoded]


def upload(client: TestClient, name: str, data: bytes) -> Any:
    return client.post("/v1/adapters", files={"file": ("a.safetensors", data)}, data={"name": name})


@pytest.fixture
def adapter_bytes(tmp_path: Path) -> Callable[[Any], bytes]:
    def bytes_of(adapter: Any) -> bytes:
        write_adapter(tmp_path / "given.safetensors", adapter)
        return (tmp_path / "given.safetensors").read_bytes()

    return bytes_of


def test_pictures_are_the_engines(client: TestClient, service: Service) -> None:
    chosen = [{"name": "s0", "strength": 0.5}, {"name": "s1"}]
    answer = client.post(GENERATIONS, json=WANTED | {"n": 2, "adapters": chosen})
    expected = [
        pixels(service.engine.submit([picture(seed=seed, adapters={"s0": 0.5, "s1": 1.0})]))[0]
        for seed in (3, 4)
    ]
    for found, own in zip(images(answer), expected, strict=True):
        assert np.abs(found - own).max() <= 1  # drawn together, and alone
    assert [entry["seed"] for entry in answer.json()["data"]] == [3, 4]
    assert answer.json()["created"] > 0


def test_what_is_left_out_is_the_base_models_own(client: TestClient, service: Service) -> None:
    first = client.post(GENERATIONS, json={"prompt": "a dog", "num_inference_steps": 1})
    assert images(first)[0].shape == (16, 16, 3)
    again = WANTED | {"seed": first.json()["data"][0]["seed"], "prompt": "a dog"}
    guidance = service.engine.drawing.sampling.guidance_scale
    again |= {"num_inference_steps": 1, "guidance_scale": guidance, "size": "auto", "model": "tiny"}
    assert np.array_equal(images(client.post(GENERATIONS, json=again))[0], images(first)[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 4}, "at most 3"),
        ({"n": 0}, "n: "),
        ({"size": "big"}, "WIDTHxHEIGHT"),
        ({"size": "128x16"}, "to 64 pixels"),
        ({"size": "20x16"}, "multiples of 8"),
        ({"num_inference_steps": 11}, "at most 10"),
        ({"prompt": "x" * 51}, "at most 50"),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": None}, "prompt: "),
        ({"negative_prompt": "x" * 51}, "negative_prompt"),
        ({"guidance_scale": 31}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"adapter": "s0"}, "adapter: Extra"),
        ({"adapters": [{"name": "s0", "strength": 11}]}, "strength"),
        ({"adapters": [{"name": "s0"}, {"name": "s0"}]}, "twice"),
        ({"adapters": [{"name": f"s{i}"} for i in range(9)]}, "at most 8"),
        ({"model": "another"}, "'tiny'"),
        ({"response_format": "url"}, "b64_json"),
    ],
)
def test_what_cannot_be_drawn_is_said(refusing: TestClient, changed: Any, said: str) -> None:
    error = problem(refusing.post(GENERATIONS, json=WANTED | changed), 400)
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", ["", "{", "[]", '{"prompt": NaN}', '{"prompt": "\\ud800"}'])
def test_what_is_no_request_is_said(refusing: TestClient, body: str) -> None:
    problem(refusing.post(GENERATIONS, content=body), 400)


def test_adapters_are_listed_added_drawn_and_deleted(
    client: TestClient, adapter_bytes: Any
) -> None:
    data = adapter_bytes(make_adapter(9))
    added = upload(client, "rex", data)
    assert added.json() == {"id": "rex", "object": "adapter", "bytes": len(data)}
    listed = client.get("/v1/adapters").json()
    assert [entry["id"] for entry in listed["data"]] == ["rex", *NAMES]
    wanted = WANTED | {"adapters": [{"name": "rex"}]}
    base = images(client.post(GENERATIONS, json=WANTED))[0]
    assert np.abs(images(client.post(GENERATIONS, json=wanted))[0] - base).max() > 10
    assert client.delete("/v1/adapters/rex").json()["deleted"] is True
    for answer in (client.post(GENERATIONS, json=wanted), client.delete("/v1/adapters/rex")):
        error = problem(answer, 404)
        assert error["message"] == "there is no adapter 'rex'"
        assert error["code"] == "adapter_not_found"


def test_uploads_are_checked_whole(
    client: TestClient, adapter_bytes: Any, library: AdapterLibrary, service: Service
) -> None:
    good = adapter_bytes(make_adapter(9))
    foreign = problem(upload(client, "rex", adapter_bytes(of_another_base())), 400)
    assert foreign["code"] == "adapter_of_another_base"
    assert "another base model" in foreign["message"]
    for damaged in (b"", good[:-1], b"PK\x03\x04" * 100):
        error = problem(upload(client, "rex", damaged), 400)
        assert error["code"] == "adapter_unusable"
        assert "/" not in error["message"].split("'rex'")[0]  # no place of this machine
    assert problem(upload(client, "s0", good), 409)["code"] == "adapter_exists"
    assert "1 to 64 letters" in problem(upload(client, "../rex", good), 400)["message"]
    problem(client.post("/v1/adapters", data={"name": "rex"}), 400)
    assert [file.name for file in library.files()] == [*NAMES]
    assert len(service.engine.shelf) == 0


def test_bodies_are_bounded_whatever_they_say_of_themselves(client: TestClient) -> None:
    problem(upload(client, "rex", b"0" * 300_000), 413)

    def pieces() -> Iterator[bytes]:  # without a length
        yield from [b"0" * 100_000] * 20

    problem(client.post(GENERATIONS, content=pieces()), 413)
    problem(client.post(GENERATIONS, json=WANTED | {"user": "x" * 2**20}), 413)


def test_keys_are_needed_where_there_are_some(service: Service) -> None:
    with TestClient(create_app(service, ["first key", "second"])) as client:
        guarded = [
            ("GET", "/v1/models"),
            ("GET", "/v1/adapters"),
            ("POST", "/v1/adapters"),
            ("DELETE", "/v1/adapters/s0"),
            ("POST", GENERATIONS),
            ("GET", "/metrics"),
        ]
        for method, path in guarded:
            for header in ({}, {"Authorization": "Bearer first"}, {"Authorization": "first key"}):
                answer = client.request(method, path, headers=header)
                assert problem(answer, 401)["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        for key in ("first key", "second"):
            answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert [entry["id"] for entry in answer.json()["data"]] == ["tiny"]


def test_nothing_of_what_others_send_is_read(service: Service) -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": read < 50}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    form = [(b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/adapters", "headers": form}
    app = create_app(service, ["first key"])
    asyncio.run(app(scope | {"query_string": b""}, receive, send))
    assert (sent[0]["status"], read) == (401, 0)


def test_all_but_its_health_is_behind_the_keys(service: Service) -> None:
    app = create_app(service, ["first key"])
    with TestClient(app) as client:
        for path in ("/docs", "/openapi.json", "/nowhere", "/health/", "//health", "/v1/models"):
            assert client.get(path, follow_redirects=False).status_code == 401, path


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 15, "é" * 16, "x" * 16 + "\n", " " + "x" * 16, "x" * 8 + "\0" * 8]
)
def test_keys_that_could_be_guessed_or_not_be_sent_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="openssl rand"):
        ServeSettings(BaseSource("base"), "library", keys=("x" * 16, key))


@pytest.mark.parametrize(
    ("client_at", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example:8000", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "[", 403),
        ("127.0.0.1", "", 403),
        ("192.168.0.7", "gpu-box:8000", 200),
    ],
)
def test_a_site_whose_name_points_here_reads_nothing(
    refusing: TestClient, client_at: str, host: str, status: int
) -> None:
    with TestClient(refusing.app, client=(client_at, 1)) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("said", ["9" * 5000, "x", "-1", "\u0663"])
def test_a_length_that_is_none_does_no_harm(refusing: TestClient, said: str) -> None:
    answer = refusing.post(GENERATIONS, content=b"{}", headers=[("content-length", said.encode())])
    assert answer.status_code in (400, 413)


def test_a_library_takes_in_so_many(
    service: Service, adapter_bytes: Callable[[Any], bytes]
) -> None:
    full = replace(service, limits=replace(service.limits, library=len(NAMES) + 1))
    data = adapter_bytes(make_adapter(0))
    with TestClient(create_app(full)) as client:
        assert upload(client, "last", data).status_code == 200
        assert "delete one first" in problem(upload(client, "more", data), 429)["message"]
        client.delete("/v1/adapters/last")
        assert upload(client, "more", data).status_code == 200


def test_pages_of_other_sites_change_nothing_where_everyone_may_ask(
    service: Service, library: AdapterLibrary
) -> None:
    """A form that a visited page sends to this machine, as browsers say it."""
    page = {"Origin": "https://elsewhere.example"}
    with TestClient(create_app(service)) as client:
        form = {"data": {"name": "planted"}, "files": {"file": b"x"}}
        problem(client.post("/v1/adapters", headers=page, **form), 403)
        problem(client.delete("/v1/adapters/s0", headers=page), 403)
        problem(client.post(GENERATIONS, json=WANTED, headers=page), 403)
    assert {file.name for file in library.files()} == set(NAMES)
    with TestClient(create_app(service, ["key"])) as client:  # which no page can know
        bearer = {"Authorization": "Bearer key"}
        assert client.get("/v1/models", headers=page | bearer).status_code == 200


def test_unknown_places_are_told_in_the_same_shape(refusing: TestClient) -> None:
    problem(refusing.get("/v1/nothing"), 404)
    problem(refusing.get(GENERATIONS), 405)
    problem(refusing.delete("/v1/adapters/..%2Fs0"), 404)


def test_too_many_requests_are_told_to_come_again(client: TestClient, service: Service) -> None:
    with held(service.engine):
        waiting = service.engine.submit([picture(seed=seed) for seed in range(5)], "testclient")
        answer = client.post(GENERATIONS, json=WANTED)
        assert problem(answer, 429)["type"] == "rate_limit_error"
        assert answer.headers["retry-after"] == "1"
    pixels(waiting)


def test_the_unexpected_tells_nothing_of_the_inside(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(service.engine._painter, "paint", breaks)
    error = problem(client.post(GENERATIONS, json=WANTED), 500)
    assert "secret" not in error["message"]


def test_what_is_counted_can_be_read(client: TestClient) -> None:
    images(client.post(GENERATIONS, json=WANTED | {"n": 2, "adapters": [{"name": "s0"}]}))
    problem(client.get("/v1/elsewhere"), 404)
    text = client.get("/metrics").text
    counted = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert counted["svfit_requests_total", GENERATIONS, "200"] == 1
    assert counted["svfit_requests_total", "other", "404"] == 1
    assert counted["svfit_batch_pictures_sum",] == 2
    assert counted["svfit_wait_seconds_count",] == 2
    assert counted["svfit_adapters",] == 1
    assert counted["svfit_adapter_bytes",] > 0
    assert counted["svfit_adapter_lookups_total", "library"] == 1
    assert counted["svfit_waiting",] == 0


def test_any_replica_tells_the_counts_of_all() -> None:
    board, replicas = MetricsBoard(), [Metrics(), Metrics()]
    replicas[0].answered(GENERATIONS, 200, 0.5)
    replicas[1].drawn(3, 1.0)
    board.exchange("one", list(replicas[0].registry.collect()))
    told = board.exchange("two", list(replicas[1].registry.collect()))
    assert len({family.name for family in told}) == len(told)
    counted = {
        (sample.name, sample.labels["replica"]): sample.value
        for family in told
        for sample in family.samples
    }
    assert counted["svfit_requests_total", "one"] == 1
    assert (
        counted["svfit_batch_pictures_sum", "one"],
        counted["svfit_batch_pictures_sum", "two"],
    ) == (0, 3)


def test_health_tells_when_nothing_is_drawn_any_more(client: TestClient, service: Service) -> None:
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    service.engine.close()
    problem(client.get("/health"), 503)
    problem(client.post(GENERATIONS, json=WANTED), 503)


def test_a_client_that_closes_its_connection_is_not_drawn_for(service: Service) -> None:
    sent: list[Any] = []
    joined = threading.Event()

    async def ask() -> None:
        """A request whose client leaves once its picture waits."""
        messages = iter([{"type": "http.request", "body": json.dumps(WANTED).encode()}])

        async def receive() -> Any:
            for message in messages:
                return message
            while not len(service.engine):
                await asyncio.sleep(0.001)
            joined.set()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": GENERATIONS,
            "raw_path": GENERATIONS.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("gone", 1),
            "server": ("here", 80),
            "scheme": "http",
        }
        await create_app(service)(scope, receive, send)

    with held(service.engine):
        asyncio.run(asyncio.wait_for(ask(), 60))
        assert joined.is_set()
        stays = service.engine.submit([picture()], "stays")
        assert len(service.engine._line._waiting) == 1
    assert sent[0]["status"] == 499
    pixels(stays)
