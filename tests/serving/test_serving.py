"""The API on Ray Serve: a replica on this machine, started by the command, and real HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_helpers import NAMES, fill_library, picture

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.serving.deployment import ServeSettings, make_service, served
from svfit_diffusion.training.base import BaseSource

WANTED = {"prompt": "a dog", "seed": 3, "size": "16x16", "num_inference_steps": 2}
KEY = "a key that nobody knows"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def request_to(port: int, path: str, body: Any = None, key: str = KEY) -> urllib.request.Request:
    return urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )


def ask(port: int, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    try:
        with urllib.request.urlopen(request_to(port, path, body, key), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_replica_on_ray_answers(saved_pipe: Path, tmp_path: Path) -> None:
    library, port = fill_library(tmp_path / "library"), free_port()
    (library / "damaged.safetensors").write_bytes(b"")
    settings = ServeSettings(BaseSource(str(saved_pipe)), str(library), keys=(KEY,), model="tiny")
    with served(settings, port=port, cpus=0.5):
        assert ask(port, "/health")[0] == 200
        assert ask(port, "/v1/adapters", key="another")[0] == 401
        status, listed = ask(port, "/v1/adapters")
        assert [entry["id"] for entry in listed["data"]] == ["damaged", *NAMES]
        drawn = {}
        for name in ("s0", "s1"):
            wanted = WANTED | {"adapters": [{"name": name}]}
            status, answer = ask(port, "/v1/images/generations", wanted)
            assert status == 200, answer
            drawn[name] = answer["data"][0]["b64_json"]
        assert drawn["s0"] != drawn["s1"]
        with urllib.request.urlopen(request_to(port, "/metrics"), timeout=60) as answer:
            assert b'svfit_batch_pictures_count{replica="' in answer.read()
        for name, expected in (("nobody", 404), ("damaged", 400)):
            status, answer = ask(
                port, "/v1/images/generations", WANTED | {"adapters": [{"name": name}]}
            )
            assert (status, "error" in answer) == (expected, True)


def test_what_cannot_be_served_is_said_at_once(saved_pipe: Path, tmp_path: Path) -> None:
    nothing = ServeSettings(BaseSource(str(tmp_path / "nothing")), str(tmp_path))
    with pytest.raises(ConfigError, match="cannot load base model"), served(nothing):
        pass
    settings = ServeSettings(BaseSource(str(saved_pipe)), str(tmp_path))
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=r"no Ray cluster"), served(settings, address=nowhere):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_service_holds_all_adapters_or_fetches_them(
    dtype: torch.dtype, saved_pipe: Path, tmp_path: Path
) -> None:
    library = fill_library(tmp_path / "library")
    source = BaseSource(str(saved_pipe))
    for bound, held in ((None, len(NAMES)), (1, 0)):
        settings = ServeSettings(source, str(library), dtype=dtype, adapter_bytes=bound)
        engine = make_service(settings).engine
        assert len(engine.shelf) == held
        engine.submit([picture("s0")])[0].image.result(60)
        engine.close()
