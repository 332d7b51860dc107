"""What hostile visitors cost the app: its memory, its disk and its time under each attack.

python -m benchmarks.attacks
python -m benchmarks.attacks --tree /tmp/another_checkout

Starts `python -m app` of a tree of this repository in a process of its own and attacks it over
HTTP. Memory is the process's resident set (Linux): what it grew by at most, and what it still has
when half a minute has gone by, in which the app gives back what it does not use.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.app_process import AppProcess, running

_MEGABYTE = 2**20
_DROP = "train-drop"  # where the page takes photos
_SETTLES = 30  # seconds


def take_photos(app: AppProcess, picture: bytes, times: int) -> str:
    """Upload a picture once, and drop it so many times as a photo to train on."""
    (path,) = app.post("upload", files={"files": ("photo.png", picture)}).json()
    config = httpx.get(f"{app.url}config", timeout=60).json()
    components = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    (event,) = (
        dependency
        for dependency in config["dependencies"]
        if [components[_DROP], "upload"] in dependency["targets"]
    )
    file = {"path": path, "orig_name": "photo.png", "meta": {"_type": "gradio.FileData"}}
    data = [[file] * times] + [None] * (len(event["inputs"]) - 1)
    session = path.split("/")[-2]
    body = {"data": data, "fn_index": event["id"], "session_hash": session, "trigger_id": None}
    app.post("queue/join", json=body).raise_for_status()
    stream = app.api(f"queue/data?session_hash={session}")
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


def large_json(app: AppProcess) -> str:
    """Send 100 MB of JSON."""

    def chunks() -> Iterator[bytes]:
        yield b'{"fn_index": 0, "session_hash": "x", "data": ["'
        for _ in range(100):
            yield b"x" * _MEGABYTE
        yield b'"]}'

    try:
        answer = app.post(
            "run/predict", content=chunks(), headers={"content-type": "application/json"}
        )
    except httpx.WriteError:
        return "cut off"
    return str(answer.status_code)


def many_uploads(app: AppProcess) -> str:
    """Upload 60 files of 15 MB."""
    statuses = [
        app.post(
            "upload", files={"files": (f"{n}.bin", n.to_bytes(2, "big") * (15 * _MEGABYTE // 2))}
        ).status_code
        for n in range(60)
    ]
    kept = sum(file.stat().st_size for file in (app.folder / "gradio").rglob("*.bin"))
    return f"{statuses.count(200)} of 60 taken, {kept / _MEGABYTE:.0f} MB on disk"


def all_places(app: AppProcess) -> str:
    """Ask for pictures 40 times, listen to none of them, and come as someone else."""
    values = ["a dog", "", {}, 100, 2, 64, 64, "The base model's own", 0, False, 8]
    for _ in range(40):
        app.post("call/generate", json={"data": values})
    began, time_out = time.monotonic(), 300
    mine = ["a cat", "", {}, 2, 2, 64, 64, "The base model's own", 7, False, 1]
    cookies = dict(httpx.get(app.url, timeout=60).cookies)
    answer = app.post("call/generate", json={"data": mine}, cookies=cookies)
    if answer.status_code != 200:
        return f"others are refused: {answer.status_code}"
    event = answer.json()["event_id"]
    stream = app.api(f"call/generate/{event}")
    with httpx.stream("GET", stream, timeout=time_out, cookies=cookies) as lines:
        for line in lines.iter_lines():
            if "event: complete" in line or "event: error" in line:
                break
    waited = time.monotonic() - began
    time.sleep(15)
    drawn = len(list(app.pictures.glob("*-seed[0-6]-*")))
    return f"another's picture after {waited:.0f} s; {drawn} drawn for nobody"


ATTACKS: dict[str, Callable[[AppProcess], str]] = {
    "66 kB picture, dropped 20 times": lambda app: take_photos(
        app, flat_picture(4096, 4000, "RGB"), 20
    ),
    "49-megapixel PNG": lambda app: take_photos(app, flat_picture(7000, 7000, "RGB"), 1),
    "49-megapixel PNG with alpha": lambda app: take_photos(
        app, flat_picture(7000, 7000, "RGBA"), 1
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
    with running(tree) as app:
        for name, attack in ATTACKS.items():
            before = app.memory("VmRSS")
            app.forget_peak()
            came = attack(app)
            time.sleep(_SETTLES)
            peak, after = app.memory("VmHWM"), app.memory("VmRSS")
            print(f"| {name} | {peak - before:.0f} | {after - before:.0f} | {came} |", flush=True)


if __name__ == "__main__":
    main()
