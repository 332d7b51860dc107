"""No request brings more than is allowed, whatever it says of itself; nobody uploads for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import event_loop
import httpx
import pytest
from app_server import AppServer

from app.entrance.allowance import Allowance
from app.entrance.bodies import BodyBounds
from app.entrance.crowd import Crowd
from app.entrance.links import LinkGate
from app.entrance.places import Places
from app.entrance.uploads import Uploads
from app.settings import Limits
from app.visitors import KEY, Visitor

LIMITS = Limits(
    max_photos=2,
    max_file_megabytes=1,
    max_visitor_megabytes=3,
    max_visitor_files=4,
    max_all_megabytes=20,
)
MEGABYTE = 2**20
ONE = Visitor("one", "10.0.0.1", "one")


class Exchange:
    """One request to an ASGI application that reads all of its body.

    Attributes:
        read: bytes that the application has got.
        asked: bytes that it was sent.
        status: of the answer.
        text: of the answer.
    """

    def __init__(self, path: str = "/run/x", visitor: Visitor = ONE, **headers: str) -> None:
        self.read = self.asked = self.status = 0
        self.text = ""
        raw = [(n.replace("_", "-").encode(), value.encode()) for n, value in headers.items()]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": raw,
            KEY: visitor,
        }

    def send(self, make: Callable[[Any], Any], chunks: Iterator[bytes] | list[bytes]) -> Exchange:
        """Send chunks through the middleware that `make` puts around the application."""
        remaining = iter(chunks)

        async def receive() -> dict[str, Any]:
            chunk = next(remaining, None)
            self.asked += len(chunk or b"")
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        async def answer(message: Any) -> None:
            self.status = message.get("status", self.status)
            self.text += message.get("body", b"").decode()

        event_loop.run(make(self._reader), self.scope, receive, answer)
        return self

    async def _reader(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":  # as frameworks answer half a request
                await send({"type": "http.response.start", "status": 400, "headers": []})
                return
            self.read += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})


def bounded(app: Any) -> BodyBounds:
    return BodyBounds(app, LIMITS)


def form(*files: bytes, boundary: str = "xyz") -> bytes:
    """A form of files, as browsers send it."""
    head = b'\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    mark = f"--{boundary}".encode()
    return b"".join(mark + head + file + b"\r\n" for file in files) + mark + b"--\r\n"


FORM = {"path": "/gradio_api/upload", "content_type": "multipart/form-data; boundary=xyz"}


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    exchange = Exchange(content_length=str(100 * MEGABYTE)).send(bounded, [b"x"])
    assert (exchange.status, exchange.read, exchange.asked) == (413, 0, 0)
    assert "1024 KB" in exchange.text


@pytest.mark.parametrize("said", [{}, {"content_length": "10"}], ids=["nothing", "a lie"])
def test_a_body_is_read_no_further_than_allowed(said: dict[str, str]) -> None:
    exchange = Exchange(**said).send(bounded, (b"x" * 2**16 for _ in range(10_000)))
    assert exchange.status == 413
    assert exchange.read <= MEGABYTE and exchange.asked <= MEGABYTE + 2**16


def test_ordinary_bodies_pass() -> None:
    exchange = Exchange(content_length="65536").send(bounded, [b"x" * 2**16])
    assert (exchange.status, exchange.read) == (200, 2**16)


def test_an_upload_has_a_bound_of_its_own() -> None:
    whole = [form(b"x" * MEGABYTE, b"y" * (MEGABYTE - 100))]
    assert Exchange(**FORM).send(bounded, whole).status == 200
    endless = Exchange(**FORM).send(bounded, (b"x" * MEGABYTE for _ in range(1000)))
    assert endless.status == 413 and endless.asked <= 4 * MEGABYTE


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_files_are_counted_wherever_a_chunk_ends(size: int) -> None:
    def chunks(count: int) -> list[bytes]:
        whole = form(*[b"--xy--xy"] * count)
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    assert Exchange(**FORM).send(bounded, chunks(4)).status == 200
    refused = Exchange(**FORM).send(bounded, chunks(5))
    assert refused.status == 413 and "4 files" in refused.text


def test_what_one_visitor_uploaded_counts_for_an_hour() -> None:
    now = 0.0
    allowance = Allowance(10, 3600, lambda: now)
    allowance.take("one", 4)
    now = 1800.0
    allowance.take("one", 5)
    assert (allowance.left("one"), allowance.left("other")) == (1, 10)
    now = 3601.0
    assert allowance.left("one") == 5
    now = 10_000.0
    assert allowance.left("one") == 10 and not allowance._taken


def test_cookies_of_ones_own_making_bring_no_more_than_an_address_has() -> None:
    uploads = Uploads(LIMITS)
    for number in range(100):
        visitor = Visitor(f"cookie {number}", "10.0.0.1", "")
        uploads.note(visitor, uploads.room(visitor).bytes, 1)
    other = Visitor("other", "10.0.0.2", "")
    assert uploads.room(Visitor("new", "10.0.0.1", "")).bytes == 0
    assert uploads.room(other).bytes == 2 * MEGABYTE


def test_all_together_fill_no_disk() -> None:
    uploads = Uploads(LIMITS)
    taken = 0
    for number in range(100):
        visitor = Visitor(f"{number}", f"10.0.0.{number}", "")
        room = uploads.room(visitor)
        uploads.note(visitor, room.bytes, 1)
        taken += room.bytes
    assert taken == LIMITS.max_all_megabytes * MEGABYTE
    assert "tomorrow" in uploads.room(ONE).too_large


def test_one_visitor_does_not_keep_everyone_waiting() -> None:
    async def check() -> None:
        free, held = anyio.Event(), 0

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            nonlocal held
            held += 1
            await free.wait()

        async def ignore(message: Any) -> None: ...

        crowd = Crowd(slow)
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                visitor = Visitor(f"cookie {number % 20}", "10.0.0.1", "")
                tasks.start_soon(crowd, Exchange(visitor=visitor).scope, None, ignore)
            await anyio.wait_all_tasks_blocked()
            before = held
            tasks.start_soon(
                crowd, Exchange(visitor=Visitor("b", "10.0.0.2", "")).scope, None, ignore
            )
            await anyio.wait_all_tasks_blocked()
            assert (before, held) == (128, 129)
            free.set()
        assert not crowd._under_way

    event_loop.run(check)


@pytest.mark.parametrize(
    "data",
    [
        b'[{"path": "http://example.org/huge.png", "meta": {"_type": "gradio.FileData"}}]',
        b'[[{"path": "\\u0068ttps://example.org/huge.png"}]]',
        b'{"deep": [{"er": {"path": "https://example.org"}}]}',
    ],
)
@pytest.mark.parametrize("headers", [{"content_type": "application/json"}, {}], ids=["json", ""])
def test_nothing_is_fetched_for_visitors(data: bytes, headers: dict[str, str]) -> None:
    exchange = Exchange(**headers).send(LinkGate, [b'{"data": ', data, b"}"])
    assert (exchange.status, exchange.read) == (422, 0)


def test_bodies_without_links_arrive_whole() -> None:
    for body in (b'{"data": [{"path": "/tmp/x.png"}, "http://x"]}', b"", b"no json", b"[" * 50_000):
        exchange = Exchange().send(LinkGate, [body[:5], body[5:]])
        assert (exchange.status, exchange.read) == (200, len(body))


@pytest.mark.parametrize("state", ["waiting", "working"])
def test_one_visitor_does_not_fill_gradios_queue(state: str) -> None:
    def joins(visitor: Visitor, there: list[Visitor]) -> bool:
        events = [SimpleNamespace(request=SimpleNamespace(scope={KEY: v})) for v in there]
        line = SimpleNamespace(queue=events if state == "waiting" else [])
        queue = SimpleNamespace(
            event_queue_per_concurrency_id={"x": line},
            active_jobs=[None, events if state == "working" else None],
        )
        exchange = Exchange("/gradio_api/queue/join", visitor)
        exchange.scope["app"] = SimpleNamespace(get_blocks=lambda: SimpleNamespace(_queue=queue))
        return exchange.send(lambda app: Places(app, LIMITS), []).status == 200

    other = Visitor("other", "10.0.0.1", "")
    assert joins(ONE, [ONE] * 9) and not joins(ONE, [ONE] * 10)
    assert joins(other, [ONE] * 10)
    crowd = [Visitor(f"{number}", "10.0.0.1", "") for number in range(40)]
    assert joins(other, crowd[:39]) and not joins(other, crowd)
    assert joins(Visitor("far", "10.0.0.2", ""), crowd)


def test_the_app_says_so_as_its_page_and_programs_understand(app_server: AppServer) -> None:
    body = {"data": ["x" * 2 * MEGABYTE], "fn_index": 0, "session_hash": "x"}
    for route in ("queue/join", "run/predict", "call/generate", "cancel"):
        answer = httpx.post(f"{app_server.url}gradio_api/{route}", json=body)
        assert answer.status_code == 413 and "1024 KB" in answer.json()["detail"]
    files = [("files", (f"{number}.png", b"x")) for number in range(201)]
    answer = httpx.post(f"{app_server.url}gradio_api/upload", files=files)
    assert answer.status_code == 413 and "200 files" in answer.text
