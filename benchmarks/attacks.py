"""What hostile visitors cost the app: its memory, its disk and its time under each attack.

python -m benchmarks.attacks
python -m benchmarks.attacks --tree /tmp/another_checkout

Starts `python -m app` of a tree of this repository in a process of its own and attacks it over
HTTP. Memory is the process's resident set (Linux): what it grew by at most, and what stayed.
"""

from __future__ import annotations

import argparse
import io
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

_MEGABYTE = 2**20
_DROP = "train-drop"  # where the page takes photos


@dataclass(frozen=True)
class Target:
    """A running app.

    Attributes:
        url: its address, with Gradio's prefix.
        config: what its page is told.
        pid: its process.
        pictures: folder of what it has drawn.
        uploads: folder of what was uploaded.
    """

    url: str
    config: dict[str, Any]
    pid: int
    pictures: Path
    uploads: Path

    def memory(self, name: str) -> float:
        """A line of the process's status in megabytes, such as `VmRSS` or `VmHWM`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024

    def forget_peak(self) -> None:
        """Let `VmHWM` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def post(self, route: str, **options: Any) -> httpx.Response:
        """Send something."""
        return httpx.post(f"{self.url}{route}", timeout=300, **options)


@contextmanager
def running(tree: Path) -> Iterator[Target]:
    """The app of a tree, within the block."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "app", "--port", str(port)),
                *("--adapters", f"{folder}/adapters", "--outputs", f"{folder}/outputs"),
            ],
            cwd=tree,
            env={"PATH": "/usr/bin:/bin", "GRADIO_TEMP_DIR": f"{folder}/gradio", "HOME": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if line.startswith("Open "))
            url = f"http://127.0.0.1:{port}/"
            config = httpx.get(f"{url}config", timeout=60).json()
            pictures = Path(folder, "outputs", "pictures")
            prefixed = f"{url}gradio_api/"
            yield Target(prefixed, config, process.pid, pictures, Path(folder, "gradio"))
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # it draws for nobody
                process.kill()


def take_photos(target: Target, picture: bytes, times: int) -> str:
    """Upload a picture once, and drop it so many times as a photo to train on."""
    (path,) = target.post("upload", files={"files": ("photo.png", picture)}).json()
    components = {c["props"].get("elem_id"): c["id"] for c in target.config["components"]}
    (event,) = (
        dependency
        for dependency in target.config["dependencies"]
        if [components[_DROP], "upload"] in dependency["targets"]
    )
    file = {"path": path, "orig_name": "photo.png", "meta": {"_type": "gradio.FileData"}}
    data = [[file] * times] + [None] * (len(event["inputs"]) - 1)
    session = path.split("/")[-2]
    body = {"data": data, "fn_index": event["id"], "session_hash": session, "trigger_id": None}
    target.post("queue/join", json=body).raise_for_status()
    stream = f"{target.url}queue/data?session_hash={session}"
    with httpx.stream("GET", stream, timeout=300) as events:
        for line in events.iter_lines():
            if "process_completed" in line:
                refusal = re.search(r"<li>(.*?)</li>", line)
                return f"refused: {refusal[1]}" if refusal else "taken"
    return "no answer"


def flat_picture(width: int, height: int, mode: str) -> bytes:
    """A picture of one colour, small as a file."""
    file = io.BytesIO()
    Image.new(mode, (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def large_json(target: Target) -> str:
    """Send 100 MB of JSON."""

    def chunks() -> Iterator[bytes]:
        yield b'{"fn_index": 0, "session_hash": "x", "data": ["'
        for _ in range(100):
            yield b"x" * _MEGABYTE
        yield b'"]}'

    try:
        answer = target.post(
            "run/predict", content=chunks(), headers={"content-type": "application/json"}
        )
    except httpx.WriteError:
        return "cut off"
    return str(answer.status_code)


def many_uploads(target: Target) -> str:
    """Upload 60 files of 15 MB."""
    statuses = [
        target.post(
            "upload", files={"files": (f"{n}.bin", n.to_bytes(2, "big") * (15 * _MEGABYTE // 2))}
        ).status_code
        for n in range(60)
    ]
    kept = sum(file.stat().st_size for file in target.uploads.rglob("*.bin"))
    return f"{statuses.count(200)} of 60 taken, {kept / _MEGABYTE:.0f} MB on disk"


def all_places(target: Target) -> str:
    """Ask for pictures 40 times, listen to none of them, and come as someone else."""
    values = ["a dog", "", {}, 100, 2, 64, 64, "The base model's own", 0, False, 8]
    for _ in range(40):
        target.post("call/generate", json={"data": values})
    began, time_out = time.monotonic(), 300
    mine = ["a cat", "", {}, 2, 2, 64, 64, "The base model's own", 7, False, 1]
    cookies = dict(httpx.get(target.url.removesuffix("gradio_api/"), timeout=60).cookies)
    answer = target.post("call/generate", json={"data": mine}, cookies=cookies)
    if answer.status_code != 200:
        return f"others are refused: {answer.status_code}"
    event = answer.json()["event_id"]
    stream = f"{target.url}call/generate/{event}"
    with httpx.stream("GET", stream, timeout=time_out, cookies=cookies) as lines:
        for line in lines.iter_lines():
            if "event: complete" in line or "event: error" in line:
                break
    waited = time.monotonic() - began
    time.sleep(15)
    drawn = len(list(target.pictures.glob("*-seed[0-6]-*")))
    return f"another's picture after {waited:.0f} s; {drawn} drawn for nobody"


ATTACKS: dict[str, Callable[[Target], str]] = {
    "66 kB picture, dropped 20 times": lambda target: take_photos(
        target, flat_picture(4096, 4000, "RGB"), 20
    ),
    "49-megapixel PNG": lambda target: take_photos(target, flat_picture(7000, 7000, "RGB"), 1),
    "49-megapixel PNG with alpha": lambda target: take_photos(
        target, flat_picture(7000, 7000, "RGBA"), 1
    ),
    "100 MB of JSON": large_json,
    "60 uploads of 15 MB": many_uploads,
    "40 requests, nobody listening": all_places,
}


def main() -> None:
    """Attack, and print a row per attack."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.attacks")
    parser.add_argument("--tree", type=Path, default=Path(), help="a checkout; default: this one")
    tree = parser.parse_args().tree
    print("| attack | peak, MB | held, MB | what came of it |\n|---|---|---|---|")
    with running(tree) as target:
        for name, attack in ATTACKS.items():
            before = target.memory("VmRSS")
            target.forget_peak()
            came = attack(target)
            peak, after = target.memory("VmHWM"), target.memory("VmRSS")
            print(f"| {name} | {peak - before:.0f} | {after - before:.0f} | {came} |", flush=True)


if __name__ == "__main__":
    main()
