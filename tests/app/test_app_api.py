"""The app as programs see it: endpoints, errors in one sentence, and files that stay inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from app_server import ADAPTERS, AppServer
from gradio_client import Client
from gradio_client.exceptions import AppError, AuthenticationError
from PIL import Image

from app.picture import PictureSettings
from app.png_metadata import read_settings, save_picture
from app.settings import Limits

SETTINGS: dict[str, Any] = {
    "prompt": "a photo of sks dog",
    "adapters": {},
    "steps": 3,
    "width": 16,
    "height": 16,
    "seed": 5,
    "new_seed": False,
}


@pytest.fixture
def client(app_server: AppServer, tmp_path: Path) -> Client:
    return visitor(app_server, tmp_path)


def visitor(server: AppServer, folder: Path) -> Client:
    """Someone with a session of their own."""
    return Client(server.url, download_files=folder, verbose=False)


def generate(client: Client, **changes: Any) -> list[Path]:
    """The files of the pictures drawn."""
    gallery, *_ = client.predict(**(SETTINGS | changes), api_name="/generate")
    return [Path(item["image"]) for item in gallery]


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_the_endpoints_are_there(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/generate", "/compare"} <= set(endpoints)
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names[:3] == ["prompt", "negative_prompt", "adapters"]


def test_pictures_carry_the_settings_that_drew_them(client: Client) -> None:
    files = generate(client, adapters={"rex": 0.5, "tom": -1}, count=2)
    assert [read_settings(path, Limits()) for path in files] == [
        PictureSettings(
            "a photo of sks dog",
            adapters={"rex": 0.5, "tom": -1},
            steps=3,
            width=16,
            height=16,
            seed=seed,
        )
        for seed in (5, 6)
    ]


def test_a_new_seed_is_drawn_and_reported(client: Client) -> None:
    seeds = set()
    for _ in range(3):
        _, _, seed = client.predict(**(SETTINGS | {"new_seed": True}), api_name="/generate")
        seeds.add(seed)
    assert len(seeds) == 3


def test_two_visitors_at_once_each_get_their_own_subject(
    app_server: AppServer, tmp_path: Path
) -> None:
    def draw(client: Client, name: str) -> list[bytes]:
        return [
            pixels(path)
            for seed in (1, 2)
            for path in generate(client, adapters={name: 1.0}, seed=seed)
        ]

    clients = [visitor(app_server, tmp_path / name) for name in ADAPTERS]
    alone = list(map(draw, clients, ADAPTERS))
    with ThreadPoolExecutor(2) as visitors:
        together = list(visitors.map(draw, clients, ADAPTERS))
    # Where they share a batch, float32 sums may round otherwise.
    levels = [
        np.frombuffer(b"".join(picture for pictures in drawn for picture in pictures), np.uint8)
        for drawn in (alone, together)
    ]
    assert np.abs(np.subtract(*levels, dtype=int)).max() <= 2
    assert len({picture for pictures in alone for picture in pictures}) == 4


def test_visitors_who_wait_share_a_batch(app_server: AppServer, tmp_path: Path) -> None:
    generator = app_server.services.generator
    sizes: list[int] = []
    hook = generator._pipe.unet.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    first, *others = (visitor(app_server, tmp_path / str(i)) for i in range(3))
    long = first.submit(**(SETTINGS | {"steps": 100, "count": 8}), api_name="/generate")
    while not long.outputs():
        time.sleep(0.05)
    jobs = [
        other.submit(**(SETTINGS | {"adapters": {name: 1.0}}), api_name="/generate")
        for other, name in zip(others, ADAPTERS, strict=True)
    ]
    while len(generator._line) < 2:
        time.sleep(0.05)
    long.cancel()
    for job, name in zip(jobs, ADAPTERS, strict=True):
        gallery, *_ = job.result(60)
        (picture,) = (read_settings(Path(item["image"]), Limits()) for item in gallery)
        assert picture.adapters == {name: 1.0}
    hook.remove()
    # Two pictures, twice for guidance.
    assert sizes[-3:] == [4, 4, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": {"nobody": 1}},
        {"adapters": {"../rex": 1}},
        {"adapters": {"rex": "strong"}},
        {"adapters": {"rex": 1e300}},
        {"adapters": ["rex"]},
        {"adapters": 7},
        {"steps": 10_000},
        {"width": 17},
        {"height": 1 << 20},
        {"seed": -5},
        {"count": 1000},
        {"count": 0},
        {"count": 1.5},
        {"prompt": "x" * 5000},
        {"scheduler": "no such"},
    ],
    ids=str,
)
def test_bad_values_get_one_plain_sentence(client: Client, changes: dict[str, Any]) -> None:
    with pytest.raises(AppError) as refusal:
        generate(client, **changes)
    message = str(refusal.value)
    assert message and "\n" not in message and "Traceback" not in message
    assert len(message) < 300


def test_compare_gives_a_grid(client: Client) -> None:
    path, download, status = client.predict(
        prompt="a dog",
        steps=2,
        width=16,
        height=16,
        x_kind="adapter",
        x_values="base model, rex, tom",
        y_kind="strength",
        y_values="0.5, 1",
        api_name="/compare",
    )
    assert "6 pictures" in status
    width, height = Image.open(path).size
    assert width > 3 * 160 and height > 2 * 160
    assert Path(download).read_bytes() == Path(path).read_bytes()


def test_compare_refuses_in_one_sentence(client: Client) -> None:
    for x_values in ("", "1, 2, x", ",".join(map(str, range(99)))):
        with pytest.raises(AppError) as refusal:
            client.predict(
                x_kind="seed", x_values=x_values, y_kind="nothing", y_values="", api_name="/compare"
            )
        assert "\n" not in str(refusal.value)


def test_cancelling_leaves_the_app_free_for_others(app_server: AppServer, tmp_path: Path) -> None:
    drawn = set(app_server.services.settings.pictures.glob("*"))
    client = visitor(app_server, tmp_path)
    job = client.submit(**(SETTINGS | {"steps": 100, "count": 8}), api_name="/generate")
    while not job.outputs():
        time.sleep(0.05)
    assert job.cancel()
    generate(visitor(app_server, tmp_path))
    assert len(set(app_server.services.settings.pictures.glob("*")) - drawn) == 1


def test_files_outside_the_public_folders_are_not_served(
    app_server: AppServer, tmp_path: Path
) -> None:
    services = app_server.services
    public = save_picture(
        services.settings.pictures, Image.new("RGB", (8, 8)), PictureSettings("a dog")
    )
    private = services.settings.trainings / "photo.png"
    private.parent.mkdir(parents=True, exist_ok=True)
    private.write_bytes(public.read_bytes())
    assert _fetch(app_server, public) == 200
    for path in (
        private,
        Path("/etc/passwd"),
        Path(__file__),
        services.settings.pictures / ".." / "trainings" / "photo.png",
        Path(services.settings.base) / "model_index.json",
    ):
        assert path.exists()
        assert _fetch(app_server, path) in (403, 404), path


def _fetch(server: AppServer, path: Path) -> int:
    return httpx.get(f"{server.url}gradio_api/file={path}").status_code


def test_a_password_keeps_others_out(serve: Callable[..., AppServer], tmp_path: Path) -> None:
    server = serve(username="me", password="secret")
    with pytest.raises(AuthenticationError):
        Client(server.url, verbose=False)
    with pytest.raises(ValueError, match="Could not login"):
        Client(server.url, auth=("me", "guess"), verbose=False)
    assert _fetch(server, Path(server.services.settings.base) / "model_index.json") == 401
    client = Client(server.url, auth=("me", "secret"), download_files=tmp_path, verbose=False)
    assert generate(client)
