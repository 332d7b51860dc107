"""How the web app feels: seconds to start, to draw, to switch adapters; memory with many adapters.

    python -m benchmarks.app_figures [--adapters 100] [--steps 20]

The app is started as users start it, offline on the embedded base model, with copies of the sample
adapter under different names, and asked over its API. Seconds to switch are measured apart from the
drawing, on a pipeline that holds the same adapters.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from gradio_client import Client

from app.base_model import BaseModel
from app.settings import SAMPLES
from benchmarks.report import Row, print_table, write_report
from svfit_diffusion.files.adapter import WEIGHTS_NAME

_BASE = str(SAMPLES / "toybox")
_SAMPLE = SAMPLES / "adapters" / "blue_car" / WEIGHTS_NAME
_PROMPT = "a photo of sks car on the beach"
_REPEATS = 20


def measure_server(folder: Path, names: list[str], steps: int) -> list[Row]:
    """Start the app on `folder`, draw with one adapter, then with each of `names`."""
    began = time.perf_counter()
    folders = ("--adapters", str(folder), "--outputs", str(folder))
    command = [sys.executable, "-m", "app", "--base", _BASE, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = _address(server)
            rows = [_row("start to ready", time.perf_counter() - began)]
            client = Client(address, download_files=folder, verbose=False)
            rows.append(_row("first picture", _draw(client, {names[0]: 1.0}, steps)))
            rows.append(_row("next picture", _draw(client, {names[0]: 1.0}, steps)))
            rows.append(_memory("memory with 1 adapter", server))
            for name in names:
                _draw(client, {name: 1.0}, steps=1)
            rows.append(_memory(f"memory with {len(names)} adapters", server))
        finally:
            server.terminate()
    return rows


def measure_switching(folder: Path, names: list[str]) -> list[Row]:
    """Median seconds to change what is active where `names` are loaded."""
    pipe: Any = BaseModel(_BASE).view()
    for name in names:
        pipe.load_svfit_weights(folder / f"{name}.safetensors", adapter_name=name)
    last, first = names[-1], names[0]
    return [
        _row("switch the adapter", _median_seconds(pipe, ([first], [1.0]), ([last], [1.0]))),
        _row("change a strength", _median_seconds(pipe, ([first], [0.5]), ([first], [0.6]))),
    ]


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("Open "):
            return line.removeprefix("Open ").strip()
    raise SystemExit("the app did not start")


def _draw(client: Client, adapters: dict[str, float], steps: int) -> float:
    """Seconds from the request to the picture."""
    began = time.perf_counter()
    client.predict(prompt=_PROMPT, adapters=adapters, steps=steps, api_name="/generate")
    return time.perf_counter() - began


def _median_seconds(pipe: Any, *states: tuple[list[str], list[float]]) -> float:
    seconds = []
    for names, weights in states * _REPEATS:
        began = time.perf_counter()
        pipe.set_svfit_adapters(names, weights)
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _memory(what: str, server: subprocess.Popen[str]) -> Row:
    return {"what": what, "megabytes": psutil.Process(server.pid).memory_info().rss / 1e6}


def _row(what: str, seconds: float) -> Row:
    return {"what": what, "seconds": seconds}


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=100, help="Adapters in the library.")
    parser.add_argument("--steps", type=int, default=20, help="Sampling steps of a picture.")
    options = parser.parse_args()
    names = [f"car {number}" for number in range(options.adapters)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            shutil.copy(_SAMPLE, folder / f"{name}.safetensors")
        rows = measure_server(folder, names, options.steps) + measure_switching(folder, names)
    print_table(rows, ["what", "seconds", "megabytes"])
    print(write_report("app_figures", rows, steps=options.steps))


if __name__ == "__main__":
    main()
