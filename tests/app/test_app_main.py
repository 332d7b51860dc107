"""`python -m app` as a new user starts it, without a network and without settings of their own."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from app_server import free_port
from gradio_client import Client

from app.__main__ import main
from app.png_metadata import read_settings
from app.settings import Limits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def first_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running process and the address it printed."""
    folder = tmp_path_factory.mktemp("first")
    folders = ("--adapters", str(folder / "adapters"), "--outputs", str(folder / "outputs"))
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", str(free_port()), *folders],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    yield process, next(line for line in lines if line.startswith("Open ")).split()[1]
    process.terminate()
    assert process.wait(60) == 0


def test_the_first_start_draws_with_the_sample_adapter(
    first_start: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    client = Client(first_start[1], download_files=tmp_path, verbose=False)
    gallery, *_ = client.predict(steps=2, api_name="/generate")
    settings = read_settings(Path(gallery[0]["image"]), Limits())
    assert settings.adapters == {"flow_blue_clock": 1}
    assert (settings.width, settings.height) == (128, 128)


def test_it_listens_on_this_machine_alone(
    first_start: tuple[subprocess.Popen[str], str],
) -> None:
    connections = psutil.Process(first_start[0].pid).net_connections("tcp")
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--base", "no/such/folder"), "no/such/folder"),
        (("--username", "me"), "username and password go together"),
        (("--max_images", "0"), "max_images"),
        (("--device", "abacus"), "abacus"),
        (("--library", "mine"), "library"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_message(
    flags: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ("--adapters", str(tmp_path), "--outputs", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["app", *folders, *flags])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_base_model_that_was_replaced_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Services:
        """A base model's, as far as serving in turn goes."""

    seen: list[weakref.ref[Services]] = []
    ports: list[int | None] = []

    def serve(services: Services, port: int | None) -> tuple[Services | None, int]:
        gc.collect()
        assert all(before() is None for before in seen)
        seen.append(weakref.ref(services))
        ports.append(port)
        return (Services() if len(seen) < 3 else None), 7861

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("app.__main__.build_services", lambda *_: Services())
    monkeypatch.setattr("app.__main__._serve", serve)
    main(["--port", "7870"])
    assert ports == [7870, 7861, 7861]
