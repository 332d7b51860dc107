"""Without a session there is a form to log in, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from app_server import AppServer
from starlette.routing import BaseRoute, Mount

from app.entrance.routes import CLOSED, OPEN, OPEN_FOLDERS, is_closed, is_open

NAME, PASSWORD = "me", "a long password"


@pytest.fixture(scope="module")
def locked(serve: Callable[..., AppServer]) -> AppServer:
    return serve(username=NAME, password=PASSWORD)


@pytest.fixture(scope="module")
def inside(locked: AppServer) -> Iterator[httpx.Client]:
    """A visitor who has logged in."""
    with httpx.Client(base_url=locked.url) as client:
        answer = client.post("login", data={"username": NAME, "password": PASSWORD})
        assert answer.json() == {"success": True}
        yield client


def requests(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Every method and path that is answered, with something for its parameters."""
    for route in routes:
        assert not isinstance(route, Mount), f"{route} has routes of its own"
        if included := getattr(route, "original_router", None):
            yield from requests(included.routes)
            continue
        path = re.sub(r"\{(\w+)(:\w+)?\}", "1", route.path)
        for method in route.methods or ():
            yield method, path


def test_every_route_is_closed_or_known_to_be_open(locked: AppServer) -> None:
    tried = set(requests(locked.server.routes))
    assert len({path for _, path in tried}) > 50
    unjustified = {
        (method, path, status)
        for method, path in tried
        if not is_open(path)
        and (status := httpx.request(method, locked.url + path.lstrip("/")).status_code)
        not in (401, 404)
    }
    assert not unjustified
    paths = {path.rstrip("/") or "/" for _, path in tried}
    assert paths >= OPEN, "what is open is there"
    assert all(any(path.startswith(folder) for path in paths) for folder in OPEN_FOLDERS)


def test_what_is_closed_is_closed_to_everyone(inside: httpx.Client, locked: AppServer) -> None:
    tried = {entry for entry in requests(locked.server.routes) if is_closed(entry[1])}
    assert len(tried) > len(CLOSED)
    for method, path in sorted(tried):
        assert inside.request(method, path.lstrip("/")).status_code == 404, path


@pytest.mark.parametrize("address", ["http://example.org/x.png", "https://127.0.0.1/x.png"])
def test_the_app_fetches_no_addresses_for_visitors(inside: httpx.Client, address: str) -> None:
    for route in ("file=", "file/", "proxy="):
        assert inside.get(f"gradio_api/{route}{address}").status_code == 404


def test_the_form_is_there_and_tells_nothing(locked: AppServer) -> None:
    answer = httpx.get(locked.url)
    assert answer.status_code == 200 and '"auth_required":true' in answer.text
    # What the API takes is told, as it is the same everywhere; what is here is not.
    assert all(word not in answer.text for word in ('"rex"', '"tom"', "elem_id"))


def test_a_session_opens_the_app(inside: httpx.Client) -> None:
    assert inside.get("config").status_code == 200
    assert inside.get("gradio_api/info").status_code == 200
    assert "elem_id" in inside.get("").text


def test_made_up_sessions_are_none(locked: AppServer) -> None:
    names = [f"access-token-{locked.server.cookie_id}", "access-token-unsecure-x", "access-token"]
    for value in ("", "None", "x"):
        cookies = dict.fromkeys(names, value)
        assert httpx.get(f"{locked.url}config", cookies=cookies).status_code == 401
