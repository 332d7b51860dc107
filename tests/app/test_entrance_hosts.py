"""Nobody uses the app by a name of their own, from a page of theirs, or in a frame of theirs."""

from __future__ import annotations

from typing import Any

import event_loop
import httpx
import pytest
from app_server import AppServer

from app.entrance.framing import Framing
from app.entrance.hosts import HostGate, KnownHosts

EVIL = "evil.example"


@pytest.mark.parametrize(
    ("listening", "given", "known", "unknown"),
    [
        (
            "127.0.0.1",
            (),
            ("127.0.0.1:7860", "localhost:1", "LOCALHOST.", "[::1]:7860", "127.9.9.9"),
            (EVIL, "10.0.0.5", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]"),
        ),
        ("10.0.0.5", (), ("10.0.0.5:80", "localhost"), ("10.0.0.6", EVIL)),
        ("0.0.0.0", (), ("10.0.0.5:80", "[fe80::1]:80", "localhost"), (EVIL, "10.0.0.5.nip.io")),
        ("::", (), ("192.168.0.7", "[2001:db8::1]"), (EVIL, "[::1", "a@127.0.0.1")),
        ("::1", (), ("[::1]:7860",), (EVIL, "10.0.0.5")),
        (
            "127.0.0.1",
            ("https://App.example.org/", "*.colab.dev"),
            ("app.example.org", "app.example.org:8443", "x.colab.dev"),
            ("example.org", "colab.dev", "xcolab.dev", f"app.example.org.{EVIL}"),
        ),
        ("127.0.0.1", ("*",), (EVIL, "10.0.0.5"), ("",)),
    ],
    ids=str,
)
def test_names_that_are_known(
    listening: str, given: tuple[str, ...], known: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    hosts = KnownHosts(listening, given)
    assert {name for name in known if not hosts.knows(name)} == set()
    assert {name for name in unknown if hosts.knows(name)} == set()


def test_pages_that_may_ask() -> None:
    hosts = KnownHosts("0.0.0.0", ["app.example.org"])
    for origin, host in (
        ("http://10.0.0.5:7860", "10.0.0.5:7860"),
        ("http://localhost", "localhost:80"),
        ("https://[::1]", "[::1]:443"),
        ("https://app.example.org", "127.0.0.1:7860"),  # a proxy asks by an address of its own
    ):
        assert hosts.trusts(origin, host), (origin, host)
    for origin, host in (
        ("null", "localhost"),
        (f"http://{EVIL}", "localhost:7860"),
        ("http://localhost:3000", "localhost:7860"),  # another program of this machine
        ("http://10.0.0.5:7860", "localhost:7860"),
        ("file://localhost:7860", "localhost:7860"),
        ("http://a@localhost:7860", "localhost:7860"),
        ("", "localhost:7860"),
    ):
        assert not hosts.trusts(origin, host), (origin, host)


def test_a_public_address_is_known_once_there_is_one() -> None:
    hosts = KnownHosts("127.0.0.1")
    assert not hosts.knows("0123.gradio.live")
    hosts.add("https://0123.gradio.live")
    assert hosts.knows("0123.gradio.live") and not hosts.knows("4567.gradio.live")
    assert hosts.trusts("https://0123.gradio.live", "0123.gradio.live")


FOREIGN = (
    {"host": EVIL},
    {"host": f"{EVIL}:7860", "origin": f"http://{EVIL}:7860"},
    {"origin": f"http://{EVIL}"},
    {"origin": "null"},
    {"x-forwarded-host": EVIL},
)
REQUESTS: tuple[dict[str, Any], ...] = (
    {"method": "GET", "url": ""},
    {"method": "GET", "url": "config"},
    {"method": "GET", "url": "gradio_api/info"},
    {"method": "GET", "url": "gradio_api/queue/data?session_hash=x"},
    {"method": "POST", "url": "gradio_api/queue/join", "json": {"data": [], "session_hash": "x"}},
    {"method": "POST", "url": "gradio_api/call/generate", "json": {"data": []}},
    {"method": "POST", "url": "gradio_api/run/predict", "json": {"data": [], "fn_index": 0}},
    {"method": "POST", "url": "gradio_api/upload", "files": {"files": ("x.png", b"x")}},
    {"method": "GET", "url": "gradio_api/file=/etc/passwd"},
    {"method": "GET", "url": "assets/nothing.js"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request["url"])
def test_foreign_names_and_pages_are_refused(
    app_server: AppServer, headers: dict[str, str], request_: dict[str, Any]
) -> None:
    asked = request_ | {"url": app_server.url + request_["url"]}
    answer = httpx.request(**asked, headers=headers)
    assert answer.status_code == 403
    assert EVIL in answer.text or "null" in answer.text
    assert "\n" not in answer.text.strip()
    assert not any("access-control" in name for name in answer.headers)
    assert "set-cookie" not in answer.headers


def test_a_foreign_page_may_not_even_ask_whether_it_may(app_server: AppServer) -> None:
    answer = httpx.options(
        f"{app_server.url}gradio_api/queue/join",
        headers={"origin": f"http://{EVIL}", "access-control-request-method": "POST"},
    )
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_ones_own_page_is_answered(app_server: AppServer) -> None:
    answer = httpx.get(app_server.url, headers={"origin": app_server.url.rstrip("/")})
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert answer.headers["x-frame-options"] == "DENY"


def opened(app: Any, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What an ASGI application says to a WebSocket that is being opened."""
    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/queue/join", "headers": raw, "query_string": b""}
    event_loop.run(app, scope, receive, send)
    return said


def test_sockets_are_refused_as_requests_are() -> None:
    async def accepting(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    gate = HostGate(accepting, KnownHosts("127.0.0.1"))
    own = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
    assert [message["type"] for message in opened(gate, own)] == ["websocket.accept"]
    for headers in ({"host": EVIL}, own | {"origin": f"http://{EVIL}"}, {}):
        (message,) = opened(gate, headers)
        assert (message["type"], message["code"]) == ("websocket.close", 1008)


def test_sites_that_are_named_may_frame_the_app() -> None:
    said: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        said.append(message)

    event_loop.run(Framing(app, ["https://example.org"]), {"type": "http"}, None, send)
    headers = dict(said[0]["headers"])
    assert headers[b"content-security-policy"] == b"frame-ancestors 'self' https://example.org"
    assert b"x-frame-options" not in headers
