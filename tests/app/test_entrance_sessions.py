"""To know the name of another's session, which browsers make up, is not enough to be in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import event_loop
import httpx
import pytest
from app_server import AppServer

from app.entrance.recognition import COOKIE
from app.entrance.sessions import Sessions, own_name
from app.page_states import PageStates
from app.visitors import KEY, Visitor

ANN, BOB = (Visitor(name, "10.0.0.1", name) for name in ("ann", "bob"))
SESSION = "a session"
DRAWING = {
    "data": ["a dog", "", {}, 2, 1, 16, 16, "The base model's own", 5, False, 1, []],
    "session_hash": SESSION,
}


def passed_on(
    visitor: Visitor,
    path: str,
    query: str = "",
    body: bytes | None = None,
    tell: Callable[[str, Visitor], None] = lambda *_: None,
) -> Any:
    """What comes of a request: its scope and body as passed on, or the messages of a refusal."""
    seen: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, (await receive())["body"]])

    async def answer(message: Any) -> None:
        seen.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        KEY: visitor,
    }
    event_loop.run(Sessions(note, tell), scope, receive, answer)
    return seen


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/gradio_api/queue/data", "session_hash=x"),
        ("/gradio_api/queue/data", "session_hash=y&a=&session_hash=x"),
        ("/gradio_api/upload_progress", "upload_id=%78"),
        ("/gradio_api/heartbeat/x", ""),
        ("/gradio_api/heartbeat/x/", "a=b"),
    ],
)
def test_a_name_is_another_one_to_every_visitor(path: str, query: str) -> None:
    def names(visitor: Visitor) -> tuple[str, str]:
        scope, _ = passed_on(visitor, path, query)
        return scope["path"], scope["query_string"].decode()

    assert names(ANN) == names(ANN) != names(BOB)
    assert "=x" not in names(ANN)[1] and not names(ANN)[0].endswith("x")
    assert ("a=" in query) == ("a=" in names(ANN)[1])


def test_what_names_no_session_stays_as_it_is() -> None:
    for path, query in (("/gradio_api/file=/heartbeat/x.png", "a=%2F&b"), ("/", "session=x")):
        scope, _ = passed_on(ANN, path, query)
        assert (scope["path"], scope["query_string"].decode()) == (path, query)
    for body in (b'{"data": ["session_hash"], "session": "x"}', b'["session_hash"]', b""):
        assert passed_on(ANN, "/gradio_api/call/x", body=body)[1] == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"session_hash": "x", "data": [1.5]}',
        b'{"session_hash": "victim", "data": [1.5], "session_hash": "x"}',
        b'{"session\\u005fhash": "x", "data": [1.5]}',
        '{"session_hash": "x", "data": [1.5]}'.encode("utf-16"),
    ],
)
def test_no_body_says_a_name_in_two_ways(body: bytes) -> None:
    _, sent = passed_on(ANN, "/gradio_api/queue/join", body=body)
    assert json.loads(sent) == {"session_hash": own_name("ann", "x"), "data": [1.5]}
    assert b"victim" not in sent


@pytest.mark.parametrize(
    "body",
    [b"no json", b"[" * 50_000, b'{"a": ' + b"1" * 5_000 + b"}", b"\xff"],
    ids=["words", "deep", "digits", "bytes"],
)
def test_what_is_not_understood_goes_no_further(body: bytes) -> None:
    assert passed_on(ANN, "/gradio_api/queue/join", body=body)[0]["status"] == 422


def test_programs_without_a_session_may_be_without_one() -> None:
    _, sent = passed_on(ANN, "/gradio_api/call/x", body=b'{"data": [], "session_hash": null}')
    assert json.loads(sent) == {"data": [], "session_hash": None}


def test_whose_a_session_is_is_told_by_the_name_it_has() -> None:
    told: dict[str, Visitor] = {}
    for visitor in (ANN, BOB):
        for body in (b'{"session_hash": "x"}', b'{"session_hash": null}', b'{"data": []}', b""):
            passed_on(visitor, "/gradio_api/queue/join", "", body, told.__setitem__)
    assert told == {own_name(visitor.id, "x"): visitor for visitor in (ANN, BOB)}


@pytest.fixture
def visitors(app_server: AppServer) -> Iterator[list[httpx.Client]]:
    """Two of the app's."""
    both = [httpx.Client(base_url=app_server.url, timeout=60) for _ in range(2)]
    for client in both:
        client.get("/")
        assert COOKIE in client.cookies
    yield both
    for client in both:
        client.close()


def events(client: httpx.Client, session: str = SESSION) -> list[dict[str, Any]]:
    """What a session is told, until it ends or is not there."""
    told = []
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as answer:
        try:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    told.append(json.loads(line[5:]))
        except httpx.RemoteProtocolError:
            pass  # how Gradio says that there is no such session
    return told


def test_nobody_hears_stops_or_looks_into_anothers_session(
    app_server: AppServer, visitors: list[httpx.Client]
) -> None:
    ann, bob = visitors
    holder = app_server.server.state_holder
    assert isinstance(holder, PageStates) and holder.capacity == 500
    states = holder.session_data
    before = set(states)
    fn = next(
        id for id, fn in app_server.server.get_blocks().fns.items() if fn.api_name == "generate"
    )
    joined = ann.post("gradio_api/queue/join", json=DRAWING | {"fn_index": fn})
    event = joined.json()["event_id"]
    overheard = events(bob)
    assert overheard and all(said["msg"] == "unexpected_error" for said in overheard)
    cancelling = {"session_hash": SESSION, "fn_index": fn, "event_id": "unknown"}
    assert bob.post("gradio_api/cancel", json=cancelling).status_code == 200
    own = events(ann)
    (done,) = (said for said in own if said["msg"] == "process_completed")
    assert done["event_id"] == event and done["success"], done
    assert ".png" in json.dumps(done["output"])
    assert SESSION not in states and len(set(states) - before) == 1
    bob.post("gradio_api/queue/join", json=DRAWING | {"fn_index": fn})
    assert events(bob)[-1]["msg"] == "close_stream"
    new = set(states) - before
    assert len(new) == 2, "a page of his own, of the same name"
    assert len({holder._whose[session].id for session in new}) == 2
