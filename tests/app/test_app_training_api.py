"""Training as programs ask for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import SECONDS, AppServer
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from svfit_diffusion.files.adapter import read_adapter


@pytest.fixture
def client(app_server: AppServer, tmp_path: Path) -> Iterator[Client]:
    yield Client(app_server.url, download_files=tmp_path, verbose=False)
    app_server.services.jobs.close()


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    """A short training."""
    files = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    for file in files:
        Image.new("RGB", (40, 40), file.stem).save(file)
    return {
        "photos": [handle_file(str(file)) for file in files],
        "name": "by program",
        "instance_prompt": "a photo of sks dog",
        "steps": 3,
        "prior_preservation": False,
        "watched_steps": 1,
    }


def over(client: Client, run: str) -> dict[str, Any]:
    """The status of a training once it is over."""
    for _ in range(10 * SECONDS):
        now = client.predict(run, api_name="/training_status")
        if now["stage"] in ("finished", "stopped", "failed"):
            return now
        time.sleep(0.1)
    raise AssertionError(now)


def test_a_program_trains_watches_and_cancels(
    client: Client, app_server: AppServer, request_: dict[str, Any]
) -> None:
    first = client.predict(**request_, api_name="/train")
    waiting = client.predict(**request_ | {"name": "another"}, api_name="/train")
    if waiting["place"]:  # the first may be over already
        assert waiting["stage"] == "waiting" and waiting["place"] == 1
    last = client.predict(**request_ | {"name": "cancelled", "steps": 5000}, api_name="/train")
    client.predict(last["run"], api_name="/cancel_training")
    done = over(client, first["run"])
    assert (done["stage"], done["step"], done["kept"]) == ("finished", 3, True)
    assert done["adapter"] == "by program"
    metadata = read_adapter(app_server.services.library.path("by program")).metadata
    assert metadata.instance_prompt == "a photo of sks dog"
    assert over(client, waiting["run"])["kept"]
    assert over(client, last["run"])["stage"] == "stopped"


def test_what_is_wrong_is_one_sentence(client: Client, request_: dict[str, Any]) -> None:
    for changes, cause in (
        ({"photos": request_["photos"][:1]}, "3 to 20 photos, you have given 1"),
        ({"photos": None}, "you have given none"),
        ({"name": "../x"}, "A name consists of"),
        ({"steps": 10**9}, "Steps: 1 to 5000 is possible, not 1000000000"),
        ({"instance_prompt": ""}, "The instance prompt is missing"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
    ):
        with pytest.raises(AppError) as refusal:
            client.predict(**request_ | changes, api_name="/train")
        assert cause in str(refusal.value) and "\n" not in str(refusal.value)
    for name in ("/training_status", "/cancel_training"):
        with pytest.raises(AppError, match="There is no training 'nobody'"):
            client.predict("nobody", api_name=name)
